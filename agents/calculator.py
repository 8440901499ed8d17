"""Calculates: the model writes the expression, the tool computes its value."""

from agents.tools import Expression, calculate
from rolecall import Agent, Context, Envelope, Tool, ToolError

USAGE = "Tell me what to calculate: /calc How much is 15 percent of 80?"


class CalculatorAgent(Agent):
    """Calculates, for example: How much is 15 percent of 80?"""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Compute an expression directly; for anything else the model must call the tool. Its calculations follow the
        answer, so that users can check them."""
        text, sums = envelope.text.strip(), list[str]()
        if not text:
            return envelope.reply(USAGE, remember=False)
        try:
            return envelope.reply(f"{text} = {calculate(text)}")
        except ToolError:
            pass

        def noted(expression: Expression) -> str:
            value = calculate(expression)
            sums.append(f"{expression} = {value}")
            return value

        tool = Tool.of(noted, name="calculate", description=calculate.__doc__ or "")
        answer = await ctx.ask(ctx.model, (), text, system=ctx.prompt("calculator"), tools=[tool], must_call=True)
        return envelope.reply(answer, text="\n".join([answer.text, *(f"({each})" for each in sums)]))
