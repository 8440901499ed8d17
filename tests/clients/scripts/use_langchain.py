"""LangChain with langchain-openai and langchain-ollama."""

import pydantic
from langchain.agents import create_agent
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from report import KEY, URL, feature


class Place(pydantic.BaseModel):
    """Where something is."""

    city: str
    people: int


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sun in {city}"


options = {"model": "auto", "base_url": f"{URL}/v1", "api_key": KEY}
chat, responses = ChatOpenAI(**options), ChatOpenAI(**options, use_responses_api=True)


def agent(model):
    found = create_agent(model, tools=[weather]).invoke({"messages": [("user", "What is the weather?")]})
    return found["messages"][-1].text == "The tool says sun in Rome"


def structured(model, **how):
    return model.with_structured_output(Place, **how).invoke("Hello").people == 3


feature("chat", lambda: chat.invoke("Hello").content == "You said Hello")
feature("stream", lambda: "".join(piece.text for piece in chat.stream("Hello")) == "You said Hello")
feature("batch", lambda: len(chat.batch(["Hello"] * 5)) == 5)
feature("tools", lambda: agent(chat))
for how in ("json_schema", "function_calling", "json_mode"):
    feature(f"structured output: {how}", lambda how=how: structured(chat, method=how))
feature("responses", lambda: responses.invoke("Hello").text == "You said Hello")
feature("responses: stream", lambda: "".join(piece.text for piece in responses.stream("Hello")) == "You said Hello")
feature("responses: tools", lambda: agent(responses))
feature("responses: structured output", lambda: structured(responses))
feature("embeddings", lambda: len(OpenAIEmbeddings(
    **options, check_embedding_ctx_length=False).embed_documents(["a", "b"])) == 2)  # fmt: skip
local = ChatOllama(model="auto", base_url=URL)
feature("Ollama's API", lambda: local.invoke("Hello").content == "You said Hello")
feature("Ollama's API: tools", lambda: agent(local))
feature("Ollama's API: structured output", lambda: structured(local))
