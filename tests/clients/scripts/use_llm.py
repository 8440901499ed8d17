"""Simon Willison's llm."""

import pydantic
from llm.default_plugins.openai_models import Chat
from report import KEY, URL, feature


class Place(pydantic.BaseModel):
    city: str
    people: int


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sun in {city}"


model = Chat("rolecall", model_name="auto", api_base=f"{URL}/v1", key=KEY, supports_schema=True, supports_tools=True)


def conversation():
    talk = model.conversation()
    talk.prompt("Hello", key=KEY).text()
    return talk.prompt("Hello again", key=KEY).text() == "You said Hello again"


feature("chat", lambda: model.prompt("Hello", key=KEY, stream=False).text() == "You said Hello")
feature("stream", lambda: "".join(model.prompt("Hello", key=KEY)) == "You said Hello")
feature("conversation", conversation)
feature("tools", lambda: "sun in Rome" in model.chain("What is the weather?", tools=[weather], key=KEY).text())
feature("structured output", lambda: '"people": 3' in model.prompt("Hello", schema=Place, key=KEY).text())
