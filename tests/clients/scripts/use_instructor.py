"""instructor."""

import instructor
import openai
import pydantic
from report import KEY, URL, feature

HELLO = [{"role": "user", "content": "Hello"}]


class Place(pydantic.BaseModel):
    city: str
    people: int


def structured(mode):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=mode)
    return client.chat.completions.create(model="auto", messages=HELLO, response_model=Place).people == 3


for name in ("TOOLS", "JSON", "JSON_SCHEMA", "RESPONSES_TOOLS"):
    feature(f"structured output: {name}", lambda name=name: structured(getattr(instructor.Mode, name)))
