"""Open WebUI's requests, as its server sends them."""

import json
import urllib.request

from report import KEY, URL, feature

HEADERS = {
    "Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "X-OpenWebUI-User-Name": "Ann",
    "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-User-Email": "ann@example.org", "X-OpenWebUI-User-Role": "user",
    "X-OpenWebUI-Chat-Id": "c1",
}  # fmt: skip
TOOL = {"type": "function", "function": {
    "name": "get_current_timestamp", "description": "Get the time", "parameters": {"type": "object", "properties": {}},
}}  # fmt: skip
TITLE = "### Task:\nGenerate a concise, 3-5 word title.\n### Chat History:\nUSER: Hello"


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{URL}{path}", data, HEADERS), timeout=30) as answer:
        return answer.read().decode()


def chat(**more):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    return ask("/v1/chat/completions", {"stream": False, "model": "auto", "messages": messages, **more})


def streamed():
    said = chat(stream=True, stream_options={"include_usage": True}, tools=[TOOL])
    chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    words = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return words == "You said Hello" and chunks[-1]["usage"] and said.rstrip().endswith("data: [DONE]")


def title():
    messages = [{"role": "user", "content": TITLE}]
    answer = json.loads(chat(messages=messages, max_completion_tokens=1000, metadata=None))
    return answer["choices"][0]["message"]["content"]


def tool():
    messages = [{"role": "user", "content": "weather"}]
    said = json.loads(chat(messages=messages, tools=[TOOL]))["choices"][0]["message"]
    call = said["tool_calls"][0]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "noon"}
    answer = json.loads(chat(messages=[*messages, said, result], tools=[TOOL]))
    return answer["choices"][0]["message"]["content"] == "The tool says noon"


def picture():
    url = "data:image/png;base64," + "iVBORw0KGgoA" * 70_000
    content = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": url}}]
    return "Hello" in chat(messages=[{"role": "user", "content": content}])


def embeddings():
    return len(json.loads(ask("/v1/embeddings", {"input": ["a", "b"], "model": "auto"}))["data"]) == 2


def ollama():
    body = {"model": "auto:latest", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "options": {}}
    lines = [json.loads(line) for line in ask("/api/chat", body).splitlines()]
    return "".join(line["message"]["content"] for line in lines) == "You said Hello" and lines[-1]["done"]


feature("models", lambda: json.loads(ask("/v1/models"))["data"][0]["id"] == "auto")
feature("stream", streamed)
feature("titles", title)
feature("tools", tool)
feature("pictures", picture)
feature("embeddings", embeddings)
feature("Ollama's API", ollama)
feature("Ollama's API: models", lambda: json.loads(ask("/api/tags"))["models"] and ask("/api/version"))
