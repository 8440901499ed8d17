"""LiteLLM."""

import litellm
from report import KEY, URL, feature

options = {"model": "openai/auto", "api_base": f"{URL}/v1", "api_key": KEY}
HELLO = [{"role": "user", "content": "Hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
SCHEMA = {**PARAMETERS, "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}


def said(**more):
    return litellm.completion(**options, **{"messages": HELLO, **more}).choices[0].message


def streamed():
    chunks = litellm.completion(**options, messages=HELLO, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said Hello"


def called():
    asked = [{"role": "user", "content": "What is the weather?"}]
    call = said(messages=asked, tools=[TOOL])
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sun"}
    return said(messages=[*asked, call.model_dump(), result], tools=[TOOL]).content == "The tool says sun"


async def asynchronous():
    return (await litellm.acompletion(**options, messages=HELLO)).choices[0].message.content == "You said Hello"


feature("chat", lambda: said().content == "You said Hello")
feature("stream", streamed)
feature("async", asynchronous)
feature("tools", called)
feature("structured output", lambda: said(response_format=FORM).content == '{"city": "Rome"}')
feature("responses", lambda: litellm.responses(**options, input="Hello").output[0].content[0].text == "You said Hello")
feature("embeddings", lambda: len(litellm.embedding(**options, input=["a", "b"]).data) == 2)
sound = ("note.ogg", b"what was said")
feature("transcription", lambda: litellm.transcription(**options, file=sound).text == "what was said")
