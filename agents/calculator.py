"""Calculates: the model writes the expression, the tool computes its value."""

import ast
import re
from collections.abc import Mapping
from types import MappingProxyType

from agents.texts import speaker
from agents.tools import LONGEST, TYPED, Expression, calculate
from rolecall import Agent, Context, Envelope, Tool, ToolError

ASKING = re.compile(
    r"(please|what is|what's|whats|how much is|how much are|calculate|compute|work out"
    r"|was ist|was sind|was macht|wie ?viel ist|wie ?viel sind|berechne|rechne"
    r"|cu[aá]nto es|cu[aá]nto son|qu[eé] es|calcula|combien font|combien fait|calcule"
    r"|quanto fa|quanto [eé]|calcola|сколько будет|посчитай)\b[:\s]*"
)
WRITTEN: Mapping[str, str] = MappingProxyType(
    {
        r"(%|percent|per ?cent|prozent|por ?ciento|por ?cento|pour ?cent|per ?cento|процентов) "
        r"(of|von|de|di|от)\b": " / 100 * ",
        r"(divided by|geteilt durch|durch|dividido (por|entre)|divis[eé] par|diviso( per)?|разделить на)\b": " / ",
        r"(times|multiplied by|mal|multiplicado por|multiplié par|fois|vezes|por|per|умножить на)\b": " * ",
        r"(plus|m[aá]s|pi[uù]|mais|плюс)\b": " + ",
        r"(minus|menos|moins|meno|минус)\b": " - ",
        r"(?<=\d) ?[x·] ?(?=\d)": " * ",
        r"(the )?(square root of|quadratwurzel (aus|von)|wurzel (aus|von)|raíz cuadrada de|√) ?([\d.]+)": r"sqrt(\5)",
        r"squared\b": " ** 2",
        r"to the power of\b": " ** ",
        r"(?<=\d),(?=\d{3}\b)": "",
        r"(?<=\d),(?=\d)": ".",
    }
)
"""How people write operators, in the languages of the bot, and what it means."""
CERTAIN = re.compile(r"[+*]|\s[-/%]\s|sqrt")
"""What makes a text a sum: ``24/7``, ``9/11`` and ``555-1234`` are none."""


class CalculatorAgent(Agent):
    """Calculates, for example: How much is 15 percent of 80?"""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Compute an expression directly; for anything else the model must call the tool. Its calculations follow the
        answer, so that users can check them."""
        text, sums = envelope.words.strip(), list[str]()
        if not text:
            return envelope.reply((await speaker(envelope, ctx)).say("calculator_how"), remember=False)
        try:
            return envelope.reply(f"{spaced(text)} = {calculate(text)}")
        except ToolError:
            pass

        def noted(expression: Expression) -> str:
            value = calculate(expression)
            sums.append(f"{spaced(expression)} = {value}")
            return value

        tool = Tool.of(noted, name="calculate", description=calculate.__doc__ or "")
        answer = await ctx.ask(ctx.model, (), text, system=ctx.prompt("calculator"), tools=[tool], must_call=True)
        return envelope.reply(answer, text="\n".join([answer.text, *(f"({each})" for each in sums)]))


def spaced(expression: str) -> str:
    """``expression`` with spaces around its stars, which would be marks of emphasis otherwise: ``2 * 3 * 4``."""
    return re.sub(r"\s*(\*+)\s*", r" \1 ", expression)


def sum_in(text: str) -> str:
    """The expression that ``text`` asks the value of, such as ``17 * 23`` for "What is 17 times 23?"; "" if ``text`` is
    anything else."""
    if len(text) > LONGEST:
        return ""
    written = text.lower().translate(TYPED).strip(" ¿?!.=\n")
    while asking := ASKING.match(written):
        written = written[asking.end() :]
    for words, meaning in WRITTEN.items():
        written = re.sub(words, meaning, written)
    expression = " ".join(written.split())
    try:
        if not CERTAIN.search(expression) or not any(map(_operation, ast.walk(ast.parse(expression, mode="eval")))):
            return ""
        calculate(expression)
    except (SyntaxError, ValueError, RecursionError, ToolError):
        return ""
    return expression


def _operation(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp | ast.Call)
