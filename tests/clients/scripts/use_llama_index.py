"""LlamaIndex with OpenAILike."""

import pydantic
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from report import KEY, URL, feature


class Place(pydantic.BaseModel):
    """Where something is."""

    city: str
    people: int


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sun in {city}"


options = {"model": "auto", "api_base": f"{URL}/v1", "api_key": KEY}
model = OpenAILike(**options, is_chat_model=True, is_function_calling_model=True)
HELLO = [ChatMessage(role="user", content="Hello")]


async def agent():
    said = await FunctionAgent(tools=[weather], llm=model).run("What is the weather?")
    return "sun in Rome" in str(said)


feature("chat", lambda: model.chat(HELLO).message.content == "You said Hello")
feature("complete", lambda: str(model.complete("Hello")) == "You said Hello")
feature("stream", lambda: "".join(piece.delta or "" for piece in model.stream_chat(HELLO)) == "You said Hello")
feature("tools", agent)
feature("structured output", lambda: model.as_structured_llm(Place).chat(HELLO).raw.people == 3)
feature("embeddings", lambda: len(OpenAILikeEmbedding(
    model_name="auto", api_base=f"{URL}/v1", api_key=KEY).get_text_embedding("a")) == 64)  # fmt: skip
