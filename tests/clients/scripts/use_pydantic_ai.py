"""pydantic-ai."""

import pydantic
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from report import KEY, URL, feature

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
chat, responses = OpenAIChatModel("auto", provider=provider), OpenAIResponsesModel("auto", provider=provider)


class Place(pydantic.BaseModel):
    """Where something is."""

    city: str
    people: int


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sun in {city}"


async def run(model, text="Hello", **options):
    return (await Agent(model, **options).run(text)).output


async def streamed(model):
    async with Agent(model).run_stream("Hello") as result:
        return await result.get_output() == "You said Hello"


async def agent(model):
    return await run(model, "What is the weather?", tools=[weather]) == "The tool says sun in Rome"


async def structured(model, form):
    return (await run(model, output_type=form)).people == 3


async def said(model):
    return await run(model) == "You said Hello"


for prefix, model in (("", chat), ("responses: ", responses)):
    feature(f"{prefix}chat", lambda model=model: said(model))
    feature(f"{prefix}stream", lambda model=model: streamed(model))
    feature(f"{prefix}tools", lambda model=model: agent(model))
    for name, form in (("tool", Place), ("native", NativeOutput(Place)), ("prompted", PromptedOutput(Place))):
        feature(f"{prefix}structured output: {name}", lambda model=model, form=form: structured(model, form))
