"""The OpenAI Agents SDK."""

import pydantic
from openai import AsyncOpenAI
from report import KEY, URL, feature

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)


class Place(pydantic.BaseModel):
    city: str
    people: int


@function_tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"sun in {city}"


async def run(kind, text, **options):
    model = kind(model="auto", openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY))
    return (await Runner.run(Agent(name="a", instructions="Be brief.", model=model, **options), text)).final_output


async def said(kind):
    return await run(kind, "Hello") == "You said Hello"


async def called(kind):
    return await run(kind, "What is the weather?", tools=[weather]) == "The tool says sun in Rome"


async def structured(kind):
    return (await run(kind, "Hello", output_type=Place)).people == 3


async def handed_over(kind):
    other = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
    poet = Agent(name="weather", model=kind(model="auto", openai_client=other))
    return str(await run(kind, "What is the weather?", handoffs=[poet]))


async def streamed(kind):
    model = kind(model="auto", openai_client=AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY))
    result = Runner.run_streamed(Agent(name="a", model=model), "Hello")
    async for _ in result.stream_events():
        pass
    return result.final_output == "You said Hello"


for prefix, kind in (("", OpenAIChatCompletionsModel), ("responses: ", OpenAIResponsesModel)):
    for name, run_it in (("chat", said), ("stream", streamed), ("tools", called), ("structured output", structured),
                         ("handoffs", handed_over)):  # fmt: skip
        feature(f"{prefix}{name}", lambda kind=kind, run_it=run_it: run_it(kind))
