"""Works out sums: the model finds the expression, the tool its value."""

from agents.tools import Expression, calculate
from rolecall import Agent, Context, Envelope, Tool, ToolError

USAGE = "Tell me what to work out: /calc How much is 15 percent of 80?"


class CalculatorAgent(Agent):
    """Works out sums, such as: How much is 15 percent of 80?"""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """An expression is worked out at once. In other words the model has to call the tool; the sums it had worked
        out follow its answer, so that one sees what was asked."""
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
