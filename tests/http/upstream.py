"""A model provider on the loopback that speaks OpenAI's protocol: it does what the last message tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from rolecall.frontends.sockets import listen
from rolecall.frontends.uvicorn_server import uvicorn_server


@dataclass
class Upstream:
    """The provider at ``url``; ``bodies`` are the requests it got."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """Texts to answer with, the next first; after them it calls the first tool, or repeats what the user said."""

    async def complete(self, request: Request) -> StreamingResponse:
        """Answer one request, always as a stream."""
        body = await request.json()
        self.bodies.append(body)
        return StreamingResponse(self._chunks(body), media_type="text/event-stream")

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        for delta, finish in self._deltas(body):
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
            if body.get("logprobs") and "content" in delta:
                choice["logprobs"] = {"content": [logprob(delta["content"], body.get("top_logprobs", 0))]}
            yield f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        yield f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    def _deltas(self, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str | None]]:
        last = body["messages"][-1]
        if self.answers:
            yield {"content": self.answers.pop(0)}, None
            yield {}, "stop"
        elif body.get("tools") and last["role"] == "user" and "Hello" not in str(last["content"]):
            count = 1 if body.get("parallel_tool_calls") is False else 2
            for index in range(count):
                name = body["tools"][0]["function"]["name"]
                yield {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function",
                       "function": {"name": name, "arguments": ""}}]}, None  # fmt: skip
                for piece in ('{"city": ', f'"city {index}"}}'):
                    yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None
            yield {}, "tool_calls"
        elif last["role"] == "tool":
            yield {"content": f"The tool says {last['content']}"}, None
            yield {}, "stop"
        else:
            yield {"content": f"You said {last['content']}"}, None
            yield {}, "length" if body.get("max_tokens") == 1 else "stop"


def logprob(token: str, alternatives: int) -> dict[str, Any]:
    """The log probability of a token, with its first alternatives."""
    tops = [{"token": str(number), "logprob": -1.5 - number, "bytes": None} for number in range(alternatives)]
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": tops}


@asynccontextmanager
async def provider(upstream: Upstream | None = None) -> AsyncIterator[Upstream]:
    """A provider of one's own."""
    upstream = upstream or Upstream()
    server = uvicorn_server(Starlette(routes=[Route("/v1/chat/completions", upstream.complete, methods=["POST"])]))
    with listen("127.0.0.1", 0) as listener:
        upstream.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        running = asyncio.create_task(server.serve([listener]), name="upstream")
        try:
            yield upstream
        finally:
            server.should_exit = True
            await running
