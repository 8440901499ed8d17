"""What came with an envelope from an API client: its own history, its tools, and how it wants to be answered."""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from rolecall.agent.structured_output import Ask, SchemaMismatch, ask_twice, instruction_for, json_in
from rolecall.bus.blobs import Blobs
from rolecall.bus.bus import Bus
from rolecall.bus.client_request import (
    ClientMessage,
    ClientRequest,
    EmbeddedTexts,
    TextsToEmbed,
    TokenLogprobs,
    load_request,
    load_value,
    schema_mismatch,
    store_value,
)
from rolecall.errors import MissingExtra, Reject
from rolecall.models.model import Answer, Message, Request, ToolCall, ToolSpec
from rolecall.models.vectors import Vectors

EXPIRED = "the request has expired; please send it again"
NOTHING = ClientRequest()
ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass
class ClientExtras:
    """The client's part of one envelope; see bus/client_request.py. A payload may also list a short ``history`` of
    {role, text}."""

    bus: Bus
    conversation: str
    payload: Mapping[str, Any]
    _request: ClientRequest | None = None
    _history: tuple[Message, ...] | None = None

    async def request(self) -> ClientRequest:
        """The client's request; empty if none came. Raises Reject once it has expired."""
        blob = self.payload.get("request")
        if self._request is None and isinstance(blob, str) and blob:
            self._request = await load_request(self.bus, self.conversation, blob)
            if self._request is None:
                raise Reject(EXPIRED)
        return self._request or NOTHING

    async def history(self) -> tuple[Message, ...]:
        """The messages before the user's last one. They replace the remembered ones, or precede them if all are system
        messages."""
        if self._history is None:
            listed = _listed(self.payload)
            self._history = listed or await self._messages((await self.request()).before)
        return self._history

    async def wanted(self, request: Request) -> Request:
        """``request`` as the client wants it answered, with the results of its tools. What the agent set itself stays;
        of two limits the smaller holds."""
        client = await self.request()
        if client == NOTHING:
            return request
        limits = [limit for limit in (request.max_tokens, client.max_tokens) if limit is not None]
        return replace(
            request,
            messages=(*request.messages, *await self._messages(client.after)),
            max_tokens=min(limits, default=None),
            temperature=client.temperature if request.temperature is None else request.temperature,
            top_p=client.top_p if request.top_p is None else request.top_p,
            seed=client.seed if request.seed is None else request.seed,
            stop=request.stop or client.stop,
            logprobs=client.logprobs,
            parallel=request.parallel and client.parallel,
            must_call=request.must_call or client.choice not in ("auto", "none"),
        )

    async def tools(self) -> tuple[ToolSpec, ...]:
        """The tools that the client runs, as far as the model may call them now."""
        client = await self.request()
        if client.choice == "none":
            return ()
        named = client.choice if client.choice not in ("auto", "required") else ""
        return tuple(
            ToolSpec(tool.name, tool.description, tool.parameters)
            for tool in client.tools
            if not named or tool.name == named
        )

    async def form(self) -> AnswerForm | None:
        """The form that the client wants the answer in; None for a text."""
        schema = (await self.request()).schema
        return None if schema is None else AnswerForm(schema or ANY_OBJECT)

    async def kept_logprobs(self, answer: Answer) -> str:
        """Store the log probabilities of ``answer``, which may be larger than an envelope; returns their id, empty if
        there are none."""
        if not answer.logprobs:
            return ""
        return await store_value(self.bus, self.conversation, TokenLogprobs(answer.logprobs))

    async def embed(
        self, payload: Mapping[str, Any], embedded: Callable[[Sequence[str], int | None], Awaitable[Vectors]]
    ) -> str:
        """Store the vectors of the texts that ``payload`` names; returns their id. Raises Reject once those have
        expired."""
        request = await load_value(self.bus, self.conversation, str(payload.get("texts", "")), TextsToEmbed)
        if request is None:
            raise Reject(EXPIRED)
        found = await embedded(request.texts, request.dimensions)
        packed = tuple(struct.pack(f"<{len(vector)}f", *vector) for vector in found.vectors)
        return await store_value(self.bus, self.conversation, EmbeddedTexts(packed, found.tokens))

    async def _messages(self, messages: tuple[ClientMessage, ...]) -> tuple[Message, ...]:
        return tuple([
            Message(one.role, one.text, await self._images(one.images), _calls(one), one.call, one.name)
            for one in messages
        ])  # fmt: skip

    async def _images(self, ids: tuple[str, ...]) -> tuple[bytes, ...]:
        found = [await Blobs(self.bus).get(self.conversation, one) for one in ids]
        return tuple(blob.data for blob in found if blob)


@dataclass(frozen=True)
class AnswerForm:
    """A JSON schema that an answer has to match; see schema_mismatch for what of it is checked."""

    schema: dict[str, Any]

    async def answer(self, request: Request, ask: Ask, log: Callable[[str], None]) -> Answer:
        """The answer that ``ask`` gives to ``request``, with JSON as its text. After an answer that does not match, the
        model is told what is wrong, once. Calls of tools, and what was cut at the model's limit, are returned as they
        are. Raises BadStructure, and whatever ``ask`` raises."""
        told = Message("system", instruction_for(self.schema))
        request = replace(request, messages=(told, *request.messages), schema=self.schema)
        answer, first = await ask_twice(request, ask, self._formed, log, "JSON that matches")
        if first is None:
            return answer
        tokens_in, tokens_out = first.tokens_in + answer.tokens_in, first.tokens_out + answer.tokens_out
        return replace(answer, tokens_in=tokens_in, tokens_out=tokens_out)

    def _formed(self, answer: Answer) -> Answer:
        if answer.calls or answer.finish in ("length", "interrupted"):
            return answer
        return replace(answer, text=self.checked(answer.text))

    def checked(self, text: str) -> str:
        """The JSON in ``text``. Raises SchemaMismatch, and MissingExtra without the library that checks it."""
        found = json_in(text)
        try:
            why = schema_mismatch(self.schema, found)
        except MissingExtra:
            raise
        except Exception as raised:  # the boundary: a schema of others, such as one that refers to nothing
            raise Reject(f"the JSON schema cannot be used: {type(raised).__name__}: {raised}"[:300]) from None
        if why:
            raise SchemaMismatch(why[:500])
        return text.strip() if _is_json(text) else json.dumps(found, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _listed(payload: Mapping[str, Any]) -> tuple[Message, ...]:
    history = payload.get("history")
    if not history:
        return ()
    try:
        return msgspec.convert(history, tuple[Message, ...])
    except msgspec.ValidationError:
        return ()


def _calls(message: ClientMessage) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call.id, call.name, call.arguments, call.signature) for call in message.calls)
