"""The wire formats of the providers, as the bytes that their servers send."""

from __future__ import annotations

import json
from typing import Any, Protocol

Counts = tuple[int, int]


class Wire(Protocol):
    """How one provider's protocol puts things into bytes of a streamed body, and into those of an error.

    An answer ends for the reason ``stop``, ``length``, ``tool_calls`` or ``filter``.
    """

    content_type: str
    nonsense: tuple[bytes, ...]
    """Bodies that are not this protocol."""

    def delta(self, text: str) -> bytes: ...
    def thought(self, text: str) -> bytes: ...
    def call(self, name: str, arguments: dict[str, Any]) -> bytes: ...
    def end(self, reason: str, counts: Counts) -> bytes: ...
    def failure(self, message: str) -> bytes: ...
    def refusal(self, status: int, message: str) -> bytes: ...
    def no_credit(self) -> tuple[int, bytes]: ...
    def too_long(self) -> tuple[int, bytes]: ...
    def waits(self) -> list[tuple[dict[str, str], bytes, float]]: ...
    def listing(self, name: str) -> bytes: ...
    def beside(self, path: str) -> bytes | None: ...


class OpenAIWire:
    """OpenAI's chat completions, as server-sent events."""

    content_type = "text/event-stream"
    nonsense: tuple[bytes, ...] = (b"data: {nonsense\n\n", b'data: {"choices": "odd"}\n\n', b"data: 3\n\n")

    def delta(self, text: str) -> bytes:
        return self._choice({"content": text})

    def thought(self, text: str) -> bytes:
        return self._choice({"reasoning_content": text})

    def call(self, name: str, arguments: dict[str, Any]) -> bytes:
        """In pieces, as they come."""
        raw = json.dumps(arguments)
        first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": raw[:3]}}
        rest = {"index": 0, "function": {"arguments": raw[3:]}}
        return self._choice({"tool_calls": [first]}) + self._choice({"tool_calls": [rest]})

    def end(self, reason: str, counts: Counts) -> bytes:
        finish = self._choice({}, "content_filter" if reason == "filter" else reason)
        usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
        return finish + self._chunk(choices=[], usage=usage) + b"data: [DONE]\n\n"

    def failure(self, message: str) -> bytes:
        return _event({"error": {"message": message, "type": "server_error", "code": None}})

    def refusal(self, status: int, message: str) -> bytes:
        return _openai_error(message, "some_code")

    def no_credit(self) -> tuple[int, bytes]:
        return 429, _openai_error("You exceeded your current quota", "insufficient_quota")

    def too_long(self) -> tuple[int, bytes]:
        said = "This model's maximum context length is 8,192 tokens. However, your messages resulted in 9000 tokens."
        return 400, _openai_error(said, "context_length_exceeded")

    def waits(self) -> list[tuple[dict[str, str], bytes, float]]:
        return [({"Retry_After_Ms": "250"}, self.refusal(429, "slow down"), 0.25)]

    def listing(self, name: str) -> bytes:
        model = {"id": name, "object": "model", "created": 1, "owned_by": "x"}
        return json.dumps({"object": "list", "data": [model]}).encode()

    def beside(self, path: str) -> bytes | None:
        return None

    def _choice(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self._chunk(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    def _chunk(self, **rest: Any) -> bytes:
        return _event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **rest})


class ResponsesWire(OpenAIWire):
    """OpenAI's Responses API, whose events have names and whose last one holds the whole answer again."""

    nonsense: tuple[bytes, ...] = (b"data: {nonsense\n\n", b"data: 3\n\n")

    def delta(self, text: str) -> bytes:
        return self._typed("response.output_text.delta", item_id="i", output_index=1, content_index=0, delta=text)

    def thought(self, text: str) -> bytes:
        return self._typed("response.reasoning_summary_text.delta", item_id="r", output_index=0, delta=text)

    def call(self, name: str, arguments: dict[str, Any]) -> bytes:
        item = {"type": "function_call", "id": "i", "call_id": "call_1", "name": name, "status": "completed"}
        item["arguments"] = json.dumps(arguments)
        return self._typed("response.output_item.done", output_index=1, item=item)

    def end(self, reason: str, counts: Counts) -> bytes:
        whole = reason in ("stop", "tool_calls")
        why = None if whole else {"reason": "max_output_tokens" if reason == "length" else "content_filter"}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        usage = {"input_tokens": counts[0], "output_tokens": counts[1], "total_tokens": sum(counts), **details}
        status = "completed" if whole else "incomplete"
        response: dict[str, Any] = {"id": "r", "status": status, "incomplete_details": why, "output": []}
        return self._typed(f"response.{status}", response={**response, "usage": usage})

    def failure(self, message: str) -> bytes:
        return self._typed("error", code="server_error", message=message, param=None)

    def _typed(self, kind: str, **rest: Any) -> bytes:
        return f"event: {kind}\n".encode() + _event({"type": kind, "sequence_number": 1, **rest})


class GeminiWire:
    """Gemini's streamGenerateContent, as server-sent events; counts come with every chunk."""

    content_type = "text/event-stream"
    nonsense: tuple[bytes, ...] = (b"data: {nonsense\n\n", b'data: {"candidates": [{"content": 3}]}\n\n', b"junk\n\n")

    def delta(self, text: str) -> bytes:
        return self._part({"text": text})

    def thought(self, text: str) -> bytes:
        return self._part({"text": text, "thought": True})

    def call(self, name: str, arguments: dict[str, Any]) -> bytes:
        return self._part({"functionCall": {"name": name, "args": arguments}, "thoughtSignature": "c2lnbmVk"})

    def end(self, reason: str, counts: Counts) -> bytes:
        # There is no reason of its own for calls.
        finish = {"length": "MAX_TOKENS", "filter": "SAFETY"}.get(reason, "STOP")
        usage = {"promptTokenCount": counts[0], "candidatesTokenCount": counts[1], "totalTokenCount": sum(counts)}
        return _event({"candidates": [{"finishReason": finish, "index": 0}], "usageMetadata": usage})

    def failure(self, message: str) -> bytes:
        return _event({"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}})

    def refusal(self, status: int, message: str, *details: dict[str, Any]) -> bytes:
        return json.dumps({"error": {"code": status, "message": message, "status": "X", "details": details}}).encode()

    def no_credit(self) -> tuple[int, bytes]:
        return 429, self.refusal(429, "You exceeded your current quota. Quota exceeded for metric: m, limit: 0")

    def too_long(self) -> tuple[int, bytes]:
        said = "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."
        return 400, self.refusal(400, said)

    def waits(self) -> list[tuple[dict[str, str], bytes, float]]:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}
        return [({}, self.refusal(429, "Quota exceeded, limit: 10", info), 37.5)]

    def listing(self, name: str) -> bytes:
        chats = {"name": f"models/{name}", "supportedGenerationMethods": ["generateContent", "countTokens"]}
        embeds = {"name": "models/embedding", "supportedGenerationMethods": ["embedContent"]}
        return json.dumps({"models": [embeds, chats]}).encode()

    def beside(self, path: str) -> bytes | None:
        return None

    def _part(self, part: dict[str, Any]) -> bytes:
        content = {"parts": [part], "role": "model"}
        return _event({"candidates": [{"content": content, "index": 0}], "usageMetadata": {"promptTokenCount": 7}})


class AnthropicWire:
    """Anthropic's messages, as server-sent events; the counts of the question come with the first one."""

    content_type = "text/event-stream"
    nonsense: tuple[bytes, ...] = (
        b"data: {nonsense\n\n", b'data: {"type": "content_block_delta", "delta": "odd"}\n\n', b"data: 3\n\n",
    )  # fmt: skip

    def delta(self, text: str) -> bytes:
        return self._typed("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def thought(self, text: str) -> bytes:
        start = {"type": "thinking", "thinking": "", "signature": ""}
        parts = ({"type": "thinking_delta", "thinking": text}, {"type": "signature_delta", "signature": "c2ln"})
        began = self._typed("content_block_start", index=9, content_block=start)
        return began + b"".join(self._typed("content_block_delta", index=9, delta=part) for part in parts)

    def call(self, name: str, arguments: dict[str, Any]) -> bytes:
        """In pieces, as they come."""
        raw, start = json.dumps(arguments), {"type": "tool_use", "id": "call_1", "name": name, "input": {}}
        pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", raw[:3], raw[3:])]
        began = self._typed("content_block_start", index=1, content_block=start)
        return began + b"".join(self._typed("content_block_delta", index=1, delta=piece) for piece in pieces)

    def end(self, reason: str, counts: Counts) -> bytes:
        finish = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "filter": "refusal"}[reason]
        message: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "content": []}
        usage = {"input_tokens": counts[0], "output_tokens": 1}
        return (
            self._typed("message_start", message={**message, "usage": usage})
            + self._typed("message_delta", delta={"stop_reason": finish}, usage={"output_tokens": counts[1]})
            + self._typed("message_stop")
        )

    def failure(self, message: str) -> bytes:
        return self._typed("error", error={"type": "api_error", "message": message})

    def refusal(self, status: int, message: str, kind: str = "some_error") -> bytes:
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()

    def no_credit(self) -> tuple[int, bytes]:
        said = "Your credit balance is too low to access the Anthropic API."
        return 400, self.refusal(400, said, "invalid_request_error")

    def too_long(self) -> tuple[int, bytes]:
        return 400, self.refusal(400, "prompt is too long: 9000 tokens > 8192 maximum", "invalid_request_error")

    def waits(self) -> list[tuple[dict[str, str], bytes, float]]:
        return [({"Retry_After": "7"}, self.refusal(429, "slow down", "rate_limit_error"), 7)]

    def listing(self, name: str) -> bytes:
        model = {"type": "model", "id": name, "display_name": "M", "created_at": "2026-01-01T00:00:00Z"}
        return json.dumps({"data": [model], "has_more": False, "first_id": name, "last_id": name}).encode()

    def beside(self, path: str) -> bytes | None:
        return None

    def _typed(self, kind: str, **rest: Any) -> bytes:
        return f"event: {kind}\n".encode() + _event({"type": kind, **rest})


class OllamaWire:
    """Ollama's chat, as lines of JSON."""

    content_type = "application/x-ndjson"
    nonsense: tuple[bytes, ...] = (b"{nonsense\n", b'{"message": "odd"}\n', b"3\n")
    loaded = True

    def delta(self, text: str) -> bytes:
        return self._line({"content": text})

    def thought(self, text: str) -> bytes:
        return self._line({"content": "", "thinking": text})

    def call(self, name: str, arguments: dict[str, Any]) -> bytes:
        return self._line({"content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]})

    def end(self, reason: str, counts: Counts) -> bytes:
        # There is no reason of its own for calls.
        finish = "length" if reason == "length" else "stop"
        usage = {"prompt_eval_count": counts[0], "eval_count": counts[1]}
        return self._line({"content": ""}, done=True, done_reason=finish, **usage)

    def failure(self, message: str) -> bytes:
        return _dumped({"error": message}) + b"\n"

    def refusal(self, status: int, message: str) -> bytes:
        return json.dumps({"error": message}).encode()

    def no_credit(self) -> tuple[int, bytes]:
        return 402, self.refusal(402, "payment required")

    def too_long(self) -> tuple[int, bytes]:
        return 400, self.refusal(400, "request (9000 tokens) exceeds the available context size (4096 tokens)")

    def waits(self) -> list[tuple[dict[str, str], bytes, float]]:
        return []

    def listing(self, name: str) -> bytes:
        return json.dumps({"models": [{"name": name, "model": name, "size": 1}]}).encode()

    def beside(self, path: str) -> bytes | None:
        models = [{"model": "m:latest", "name": "m:latest", "size": 1}] if self.loaded else []
        return json.dumps({"models": models}).encode() if path == "/api/ps" else None

    def _line(self, message: dict[str, Any], **rest: Any) -> bytes:
        said = {"role": "assistant", **message}
        return (
            _dumped({"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": said, "done": False, **rest})
            + b"\n"
        )


def _openai_error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + _dumped(data) + b"\n\n"


def _dumped(data: dict[str, Any]) -> bytes:
    """With letters of every script as they are, several bytes each; of line separators only the escape."""
    return json.dumps(data, ensure_ascii=False).replace("\u2028", "\\u2028").encode()
