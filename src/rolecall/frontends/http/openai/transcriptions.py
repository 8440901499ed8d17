"""Transcriptions of recordings, by the role ``voice``."""

from __future__ import annotations

import mimetypes
import secrets
from typing import Annotated, Any

from fastapi import File, Form, Request, Response, UploadFile
from fastapi.responses import PlainTextResponse

from rolecall.bus.blobs import Blobs
from rolecall.bus.client_request import lifetime
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.auth import User
from rolecall.frontends.http.body import file_name
from rolecall.frontends.http.intake import ChatRequest, conversation_of
from rolecall.frontends.http.openai.embeddings import LANES
from rolecall.frontends.http.openai.pending_answer import admitted
from rolecall.frontends.http.openai.request_fields import AUTO
from rolecall.frontends.http.problems import Problem, problem_responses, text
from rolecall.frontends.http.services import Services, ServicesDep

ROLE = "voice"
SOUND = ("audio/", "video/")
FORMATS = ("json", "text", "verbose_json")
UNKNOWN = {"task": "transcribe", "language": "", "duration": 0.0}
"""What else ``verbose_json`` must have: LiteLLM always asks for that form."""
router = api_router(prefix="/v1", tags=["OpenAI-compatible"])


@router.post("/audio/transcriptions", summary="Transcribe a recording", response_model=None,
             responses=problem_responses(400, 403, 404, 413, 429, 502))  # fmt: skip
async def transcribe(
    request: Request, response: Response, services: ServicesDep, who: User,
    file: Annotated[UploadFile, File(description="a recording of up to BLOB_MEGABYTES")],
    model: Annotated[str, Form(max_length=200, description="VOICE_MODEL, or auto")] = AUTO,
    response_format: Annotated[str, Form(max_length=20, description="json, text or verbose_json")] = "json",
    stream: Annotated[bool, Form()] = False,
) -> Any:  # fmt: skip
    """The words in a recording."""
    _check(services, model, response_format, stream)
    kind = _media_type(file)
    if not file.size:
        raise Problem(400, text("empty_file"), "invalid_request", param="file")
    conversation = conversation_of(who, f"transcriptions-{secrets.randbelow(LANES)}")
    async with services.storing[who.id]:
        blob = await Blobs(services.bus, lifetime(services.bus)).put(conversation, await file.read(), kind)
    sound = {"blob": blob, "name": file_name(file) or "sound", "type": kind}
    asked = ChatRequest("", conversation, ROLE, commands=False, attached={"files": [sound]})
    async with admitted(services, who, asked, None, {}, kept=False) as pending:
        response.headers.update(pending.headers)
        task = await pending.answer(services, request)
    if response_format == "text":
        return PlainTextResponse(task.text + "\n")
    return {"text": task.text, **(UNKNOWN if response_format == "verbose_json" else {})}


def _check(services: Services, model: str, response_format: str, stream: bool) -> None:
    configured = services.settings.voice_model or ""
    if not configured or services.application.role(ROLE) is None:
        raise Problem(404, text("no_voice_model"), "model_not_found", param="model")
    if model not in (AUTO, configured, configured.rpartition("@")[0]):
        detail = text("model_not_found", name=repr(model[:100]), models=configured)
        raise Problem(404, detail, "model_not_found", param="model")
    for name, is_unsupported in {"response_format": response_format not in FORMATS, "stream": stream}.items():
        if is_unsupported:
            raise Problem(400, text("unsupported_parameter", name=name), "unsupported_parameter", param=name)


def _media_type(file: UploadFile) -> str:
    """What kind of recording it is, by its type or its name. Raises Problem (400) for what is none."""
    given = (file.content_type or "").partition(";")[0].strip().lower()
    guessed = mimetypes.guess_type(file.filename or "")[0] or ""
    kind = next((kind for kind in (given, guessed) if kind.startswith(SOUND)), "")
    if not kind:
        raise Problem(400, text("not_a_recording"), "invalid_request", param="file")
    return kind
