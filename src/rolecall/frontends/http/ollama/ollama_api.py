"""Ollama's API: chats, completions and vectors by the application's roles and models, and the list of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from rolecall.background import cancel_and_wait
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.body import Uploads
from rolecall.frontends.http.ollama.ollama_request import LATEST, OllamaChat, OllamaPrompt
from rolecall.frontends.http.openai.completions import ConversationId
from rolecall.frontends.http.openai.embeddings import checked_texts, floats_of, vectors_of
from rolecall.frontends.http.openai.model_list import listed, model_names
from rolecall.frontends.http.openai.pending_answer import PendingAnswer, SentText, admitted, reason_of
from rolecall.frontends.http.openai.request_fields import Items, request_from
from rolecall.frontends.http.problems import problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.sse import Streaming, until_stopped
from rolecall.frontends.http.task import Task, note_delivered

VERSION = "0.12.0"
"""The version of Ollama whose API this is: its clients compare it."""
NDJSON = "application/x-ndjson"
QUIET_SECONDS = 15.0
"""After so long without a line, a stream gets one without text, as proxies end what stays quiet."""
DETAILS = {"parent_model": "", "format": "rolecall", "family": "rolecall", "families": ["rolecall"],
           "parameter_size": "", "quantization_level": ""}  # fmt: skip
CAPABILITIES = ["completion", "tools", "vision"]
RESPONSES: dict[int | str, dict[str, Any]] = {
    **problem_responses(400, 403, 404, 409, 413, 429, 502),
    200: {"content": {"application/json": {}, NDJSON: {"schema": {"type": "string"}}}},
}
router = api_router(prefix="/api", tags=["Ollama-compatible"])


@dataclass
class OllamaAnswer:
    """An answer in the making. ``chat`` says whether it is a message or the bare text."""

    pending: PendingAnswer
    model: str
    streamed: bool
    chat: bool

    def line(self, said: str, task: Task | None = None) -> dict[str, Any]:
        """One line of a stream, the last one with the ended ``task``; or, with that, the whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if task is not None and task.calls:
            message["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": _arguments(call.arguments)}}
                for call in task.calls
            ]
        told = {"message": message} if self.chat else {"response": said}
        head = {"model": self.model, "created_at": _now(), **told, "done": task is not None}
        return {**head, **(_ending(task) if task is not None else {})}


@asynccontextmanager
async def _submitted(
    body: OllamaChat | OllamaPrompt, response: Response, services: Services, who: User, uploads: Uploads, given: str
) -> AsyncIterator[OllamaAnswer | Response]:
    asked = body.messages if isinstance(body, OllamaChat) else body.prompt or body.images
    if not asked:  # Ollama's clients have a model loaded like this, before the first question
        model_names(services).check(body.name)
        yield _loaded(body)
        return
    names, schemas = model_names(services), bool(body.format or (isinstance(body, OllamaChat) and body.tools))
    request = await request_from(services, lambda: body.request(names, given), schemas=schemas)
    async with admitted(services, who, request, None, uploads, kept=bool(given)) as pending:
        response.headers.update(pending.headers)
        yield OllamaAnswer(pending, body.model, body.stream is not False, isinstance(body, OllamaChat))


async def _chat(
    body: OllamaChat, response: Response, services: ServicesDep, who: User, uploads: Uploads, given: ConversationId = ""
) -> AsyncIterator[OllamaAnswer | Response]:
    async with _submitted(body, response, services, who, uploads, given) as answer:
        yield answer


async def _prompt(
    body: OllamaPrompt, response: Response, services: ServicesDep, who: User, uploads: Uploads,
    given: ConversationId = "",
) -> AsyncIterator[OllamaAnswer | Response]:  # fmt: skip
    async with _submitted(body, response, services, who, uploads, given) as answer:
        yield answer


@router.post("/chat", summary="Chat", response_model=None, responses=RESPONSES, dependencies=[Streaming])
async def chat(
    request: Request, services: ServicesDep, answer: Annotated[OllamaAnswer | Response, Depends(_chat)]
) -> Response:
    """A stream of JSON lines unless `stream` is `false`. `X-Conversation-Id` names the conversation."""
    return await _answered(services, request, answer)


@router.post("/generate", summary="Complete a prompt", response_model=None, responses=RESPONSES,
             dependencies=[Streaming])  # fmt: skip
async def generate(
    request: Request, services: ServicesDep, answer: Annotated[OllamaAnswer | Response, Depends(_prompt)]
) -> Response:
    """As `/api/chat`, for one `prompt` and `system`."""
    return await _answered(services, request, answer)


class OllamaTexts(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", max_length=200)
    input: str | Items[str]
    dimensions: int | None = Field(None, ge=1, le=65_536)


@router.post("/embed", summary="Create embeddings", responses=problem_responses(400, 403, 404, 413, 429, 502))
async def embed(
    body: OllamaTexts, request: Request, response: Response, services: ServicesDep, who: User
) -> dict[str, Any]:
    """The vectors of up to 2,048 texts, in their order."""
    texts = checked_texts([body.input] if isinstance(body.input, str) else body.input)
    name = body.model.removesuffix(LATEST)
    found = await vectors_of(services, request, response, who, name, texts, body.dimensions)
    vectors = [floats_of(one) for one in found.vectors]
    return {"model": body.model, "embeddings": vectors, "prompt_eval_count": found.tokens}


class OllamaText(BaseModel):
    """A text to embed."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("auto", max_length=200)
    prompt: str = ""


@router.post("/embeddings", summary="Create an embedding", responses=problem_responses(400, 403, 404, 413, 429, 502))
async def embed_one(
    body: OllamaText, request: Request, response: Response, services: ServicesDep, who: User
) -> dict[str, list[float]]:
    """As `/api/embed`, for one `prompt`: what older clients ask for."""
    found = await embed(OllamaTexts(model=body.model, input=body.prompt), request, response, services, who)
    return {"embedding": found["embeddings"][0]}


# ── what there is ───────────────────────────────────────────────────────────────────────────────


class NamedModel(BaseModel):
    """A model by its name, under its new or its old field."""

    model: str = Field("", max_length=200)
    name: str = Field("", max_length=200)


@router.get("/version", summary="Get the version")
async def show_version() -> dict[str, str]:
    """The version of Ollama whose API this is."""
    return {"version": VERSION}


@router.get("/tags", summary="List the models", responses=problem_responses())
async def list_tags(services: ServicesDep, _: User) -> dict[str, Any]:
    """The same as `/v1/models`."""
    return {"models": [_model(name) for name in listed(services)]}


@router.get("/ps", summary="List the running models", responses=problem_responses())
async def list_running(services: ServicesDep, _: User) -> dict[str, Any]:
    """All of them: nothing has to be loaded before a request."""
    return {"models": [{**_model(name), "size_vram": 0, "expires_at": _now()} for name in listed(services)]}


@router.post("/show", summary="Show a model", responses=problem_responses(404))
async def show(body: NamedModel, services: ServicesDep, _: User) -> dict[str, Any]:
    """What it can do depends on the models of the deployment."""
    name = (body.model or body.name).removesuffix(LATEST)
    model_names(services).check(name)
    info = {"general.architecture": "rolecall", "general.basename": name}
    return {
        "modelfile": "", "parameters": "", "template": "", "license": "", "details": DETAILS, "model_info": info,
        "capabilities": CAPABILITIES, "modified_at": _now(),
    }  # fmt: skip


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────


def _loaded(body: OllamaChat | OllamaPrompt) -> Response:
    said = {"message": {"role": "assistant", "content": ""}} if isinstance(body, OllamaChat) else {"response": ""}
    loaded = {"model": body.model, "created_at": _now(), **said, "done": True, "done_reason": "load"}
    return Response(msgspec.json.encode(loaded), media_type="application/json")


async def _answered(services: Services, request: Request, answer: OllamaAnswer | Response) -> Response:
    if isinstance(answer, Response):
        return answer
    headers = dict(answer.pending.headers)
    if answer.streamed:
        headers["x-accel-buffering"] = "no"  # as FastAPI says of server-sent events
        return StreamingResponse(_encoded(services, answer), headers=headers, media_type=NDJSON)
    task = await answer.pending.answer(services, request)
    after = BackgroundTask(note_delivered, services, answer.pending.received)
    body = msgspec.json.encode(answer.line(task.text, task))
    return Response(body, headers=headers, media_type="application/json", background=after)


async def _encoded(services: Services, answer: OllamaAnswer) -> AsyncGenerator[bytes]:
    farewell = {"error": text("server_stopping")}
    async with aclosing(until_stopped(services, _lines(services, answer), farewell)) as lines:
        while True:
            coming = asyncio.ensure_future(anext(lines))
            try:
                while not (await asyncio.wait([coming], timeout=QUIET_SECONDS))[0]:
                    yield msgspec.json.encode(answer.line("")) + b"\n"
                yield msgspec.json.encode(coming.result()) + b"\n"
            except StopAsyncIteration:
                return
            finally:
                await cancel_and_wait(coming)


async def _lines(services: Services, answer: OllamaAnswer) -> AsyncGenerator[dict[str, Any]]:
    sent = SentText()
    async with aclosing(answer.pending.events(services)) as events:
        async for event in events:
            new = sent.add(event)
            if sent.restarted(event):
                yield {"error": text("answer_restarted")}
                return
            if new:
                yield answer.line(new)
            if event.last:
                task = answer.pending.task_after(event)
                yield answer.line("", task) if task.state == "done" else {"error": reason_of(task)}
    await note_delivered(services, answer.pending.received)


def _ending(task: Task) -> dict[str, Any]:
    counts = {"prompt_eval_count": task.usage.tokens_in, "eval_count": task.usage.tokens_out}
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    reason = "length" if task.finish == "length" else "stop"
    return {"done_reason": reason, **dict.fromkeys(durations, 0), **counts}


def _arguments(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return {}


def _model(name: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "modified_at": _now(), "size": 0, "digest": digest, "details": DETAILS}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
