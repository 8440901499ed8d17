"""OpenAI's own client for Python."""

import asyncio

import openai
import pydantic
from report import KEY, URL, feature

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = [{"role": "user", "content": "What is the weather?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PNG = "data:image/png;base64,iVBORw0KGgo="


class Place(pydantic.BaseModel):
    city: str
    people: int


def chat(**options):
    return client.chat.completions.create(**{"model": "auto", "messages": HELLO, **options})


def streamed():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return said == "You said Hello" and chunks[-1].usage.total_tokens


def tools():
    offer = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
    said = chat(messages=WEATHER, tools=offer).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sun"}
    return chat(messages=[*WEATHER, said, result], tools=offer).choices[0].message.content == "The tool says sun"


def parsed():
    answer = client.chat.completions.parse(model="auto", messages=HELLO, response_format=Place)
    return answer.choices[0].message.parsed.people == 3


def several():
    return [one.message.content for one in chat(n=2).choices] == ["You said Hello"] * 2


def texts():
    whole = client.completions.create(model="auto", prompt="Hello").choices[0].text
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model="auto", prompt="Hello", stream=True)]
    return whole == "".join(pieces) == "You said Hello"


def pictures():
    content = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": PNG}}]
    return chat(messages=[{"role": "user", "content": content}]).choices[0].message.content


def responses():
    first = client.responses.create(model="auto", input="Hello")
    second = client.responses.create(model="auto", input="Hello again", previous_response_id=first.id)
    return second.output_text == "You said Hello again" and client.responses.retrieve(first.id).id == first.id


def streamed_response():
    with client.responses.stream(model="auto", input="Hello") as stream:
        return stream.get_final_response().output_text == "You said Hello"


def response_tools():
    offer = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}]
    first = client.responses.create(model="auto", input=WEATHER, tools=offer)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "sun"}
    last = client.responses.create(model="auto", input=[result], previous_response_id=first.id, tools=offer)
    return last.output_text == "The tool says sun"


def background():
    answer = client.responses.create(model="auto", input="Hello", background=True)
    while answer.status in ("queued", "in_progress"):
        answer = client.responses.retrieve(answer.id)
    return answer.output_text == "You said Hello"


def files():
    file = client.files.create(file=("notes.txt", b"Hello"), purpose="user_data")
    content = [{"type": "file", "file": {"file_id": file.id}}]
    answer = chat(messages=[{"role": "user", "content": content}])
    return "Hello" in answer.choices[0].message.content and client.files.delete(file.id).deleted


async def asynchronous():
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as other:
        asked = [other.chat.completions.create(model="auto", messages=HELLO) for _ in range(4)]
        return len({answer.id for answer in await asyncio.gather(*asked)}) == 4


feature("models", lambda: next(one.id for one in client.models.list()) == "auto" and client.models.retrieve("auto"))
feature("chat", lambda: chat().choices[0].message.content == "You said Hello")
feature("stream", streamed)
feature("async", asynchronous)
feature("tools", tools)
feature("structured output", parsed)
feature("pictures", pictures)
feature("several answers", several)
feature("text completions", texts)
feature("responses", responses)
feature("responses: stream", streamed_response)
feature("responses: tools", response_tools)
feature("responses: structured output", lambda: client.responses.parse(
    model="auto", input="Hello", text_format=Place).output_parsed.city == "Rome")  # fmt: skip
feature("responses: background", background)
feature("embeddings", lambda: len(client.embeddings.create(model="auto", input=["a", "b"]).data) == 2)
feature("transcription", lambda: client.audio.transcriptions.create(
    model="auto", file=("note.ogg", b"what was said", "audio/ogg")).text == "what was said")  # fmt: skip
feature("files", files)
