"""A client that is generated from the OpenAPI document."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from openapi_spec_validator import validate
from report import URL, feature

with urllib.request.urlopen(f"{URL}/openapi.json") as answer:
    document = json.load(answer)
Path("openapi.json").write_text(json.dumps(document))
binaries = str(Path(sys.executable).parent)
generate = [f"{binaries}/openapi-python-client", "generate", "--path", "openapi.json", "--output-path", "generated"]
made = subprocess.run(
    [*generate, "--meta", "none"],
    capture_output=True,
    text=True,
    env={**os.environ, "PATH": f"{binaries}:/usr/bin:/bin"},
)
sys.path.insert(0, str(Path.cwd()))


def calls():
    from generated import Client
    from generated.api.chat import chat_chat
    from generated.models import ChatBody, ProblemDetails

    client = Client(base_url=URL)
    task = chat_chat.sync(client=client, body=ChatBody(text="Hello"))
    refused = chat_chat.sync(client=client, body=ChatBody(text="Hello", role="nobody"))
    return task.text == "You said Hello" and isinstance(refused, ProblemDetails) and refused.code == "unknown_role"


def openai_calls():
    from generated import Client
    from generated.api.open_ai_compatible import completions_complete, embeddings_embed
    from generated.models import ChatMessage, ChatMessageRole, CompletionBody, EmbeddingBody, OpenAIError

    client = Client(base_url=URL)
    hello = ChatMessage(role=ChatMessageRole.USER, content="Hello")
    answer = completions_complete.sync(client=client, body=CompletionBody(messages=[hello]))
    refused = embeddings_embed.sync(client=client, body=EmbeddingBody(input_="Hello", model="nothing"))
    return answer["choices"] and isinstance(refused, OpenAIError) and refused.error.code == "model_not_found"


def is_valid():
    validate(document)
    return True


feature("document is valid", is_valid)
feature("generated without a warning", lambda: made.returncode == 0 and "arning" not in made.stdout + made.stderr)
feature("chat and its errors", calls)
feature("chat completions and their errors", openai_calls)
