"""How a message that came by HTTP becomes a turn, or a Problem."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import mimetypes
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Header
from msgspec.structs import replace
from pydantic import BaseModel, Field

from rolecall.bus.blobs import Blobs, image_type
from rolecall.bus.client_request import MAX_BYTES, ClientMessage, ClientRequest, fitting, lifetime, store_request
from rolecall.bus.conversation import replace_turns
from rolecall.bus.envelope import MAX_TEXT_BYTES, check_conversation
from rolecall.bus.schedule.schedules import unschedule_turn
from rolecall.bus.turn import FIRST_ROLE
from rolecall.errors import RolecallError
from rolecall.frontends.documents import UnreadableFile, text_of
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.body import Upload
from rolecall.frontends.http.problems import NO_RETRY, Problem, bus_timeout, text
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.task import TaskRef

PREFIX = "http:"
LANGUAGE_CODE = re.compile(r"[a-zA-Z]{2,8}(-[a-zA-Z0-9]{1,8}){0,8}", re.ASCII)
DATA_URL = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,(.*)", re.ASCII | re.DOTALL)
STORED = re.compile(r"blob:([0-9a-f]{32})", re.ASCII)
"""The URL of an image that is stored already."""
FILE_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=-]+)*;base64,(.*)", re.ASCII | re.DOTALL)
MAX_IMAGES = 16
MAX_FILES = 8
NOTHING = ClientRequest()
NO_UPLOADS: Mapping[str, Upload] = MappingProxyType({})
TITLE_CHARS = 60
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="a request repeated with the same key within 24 h is the same task"),
]
AcceptLanguage = Annotated[
    str, Header(alias="Accept-Language", description="of the answers to commands, such as /help")
]
OVERLOADED = {"FULL": (429, 5), "BUSY": (503, 10)}
"""Status and Retry-After seconds by the outcome of an admission."""


class MessageFile(BaseModel):
    """A document or a recording that comes with a message."""

    name: str = Field(max_length=200, examples=["report.pdf"])
    data: str = Field(description="a data URL: data:application/pdf;base64,…")
    type: str = Field("", max_length=100, description="its media type, where `data` is base64 only")


@dataclass(frozen=True)
class ChatRequest:
    """A message to be answered. ``images`` are data URLs, names of uploads, or ``blob:`` and an id. ``client`` is what
    the client brings along, its images likewise: if all its messages are of the system they go before the stored
    history, else they replace that. ``end_user`` is whom the client calls its user. Without ``commands`` a text such as
    /help is a text. ``attached`` is what else the payload has. ``again`` is the turn that this message replaces with
    everything after it.
    """

    text: str
    conversation: str = ""
    role: str = ""
    model: str = ""
    priority: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[str] = ()
    files: Sequence[MessageFile] = ()
    client: ClientRequest = NOTHING
    end_user: str = ""
    commands: bool = True
    attached: Mapping[str, Any] = field(default_factory=dict)
    asks: bool = False
    """Whether its client can be asked while the task runs."""
    again: str = ""
    language: str = ""
    """What the header Accept-Language says."""

    @property
    def given(self) -> dict[str, Any]:
        """What travels with the text as it is. Empty values are left out, so that a repeated request has the same
        digest."""
        given = {
            "role": self.role, "model": self.model, "metadata": dict(self.metadata), "verbatim": not self.commands,
            **self.attached,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value}

    @property
    def meta(self) -> dict[str, Any]:
        """What the envelope's ``meta`` has."""
        meta = {"asks": self.asks, "again": f"{self.again}+" if self.again else ""}
        return {name: value for name, value in meta.items() if value}


async def submit(
    services: Services,
    who: Principal,
    request: ChatRequest,
    idempotency_key: str | None,
    uploads: Mapping[str, Upload] = NO_UPLOADS,
) -> Received:
    """Admit a message as a turn, or execute it at once if it is such a command. Raises Problem when it is refused and
    ServerUnavailable when the bus cannot be reached."""
    _check(services, request)
    _check_idempotency_key(idempotency_key)
    conversation = conversation_of(who, request.conversation, idempotency_key)
    stored = await _stored(services, who, conversation, request, uploads)
    async with bus_timeout():
        received = await services.front.receive(
            conversation,
            request.text,
            payload={**request.given, **stored},
            idempotency=_scoped(who, idempotency_key) if idempotency_key else None,
            principal=f"{PREFIX}{who.id}",
            title=_title(who, request.end_user),
            priority=request.priority,
            meta=request.meta,
            commands=request.commands,
            language=preferred_language(request.language),
        )
        if received.refused:
            raise _refused(received)
        if request.again and received.turn:
            await replace_turns(services.bus, conversation, request.again, received.turn, services.front.instance)
            await unschedule_turn(services.bus, conversation, request.again, instance=services.front.instance)
    return received


def conversation_of(who: Principal, given: str, idempotency_key: str | None = None) -> str:
    """The full id of the conversation that this key calls ``given``; without a name a new one, the same for a repeated
    request. Raises Problem."""
    own = f"{PREFIX}{who.id}:"
    if not given:
        return own + (_scoped(who, idempotency_key)[:16] if idempotency_key else secrets.token_hex(8))
    if given.startswith(PREFIX) and not given.startswith(own) and not who.admin:
        raise Problem(403, text("foreign_conversation"), param="conversation_id")
    try:
        return check_conversation(given if given.startswith(PREFIX) else own + given)
    except RolecallError as error:
        raise Problem(422, text("bad_conversation", reason=error), param="conversation_id") from None


def fitted(services: Services, request: ChatRequest) -> tuple[ChatRequest, int]:
    """``request`` with as much of its client's history as can be stored, and how many messages are left out."""
    most = min(MAX_BYTES, services.settings.blob_megabytes * 1024 * 1024 // 2)
    client, cut = fitting(request.client, most)
    return dataclasses.replace(request, client=client), cut


def preferred_language(accepted: str) -> str:
    """The language that a header Accept-Language prefers, such as ``pt-BR``; empty if it names none."""
    weighed = []
    for one in accepted.split(","):
        code, _, weight = one.partition(";")
        quality = re.fullmatch(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", weight)
        weighed.append((float(quality[1]) if quality else 1.0, code.strip()))
    best, code = max(weighed, key=itemgetter(0))
    return code if best and LANGUAGE_CODE.fullmatch(code) else ""


def headers_of(received: Received) -> dict[str, str]:
    """The response headers that name a turn and its conversation."""
    headers = {"X-Conversation-Id": quote(received.conversation, safe=":/@")}
    if received.turn:
        task_id = TaskRef(received.conversation, received.turn).id
        headers |= {"X-Task-Id": task_id, "Location": f"/chat/task/{task_id}"}
    return headers


def _check(services: Services, request: ChatRequest) -> None:
    roles = sorted(role.name for role in services.application.roles if role.name != FIRST_ROLE)
    if request.role and request.role not in roles:
        raise Problem(422, text("unknown_role", roles=", ".join(roles)), "unknown_role", param="role")
    if request.model and request.model not in services.application.model_names:
        models = ", ".join(services.application.model_names)
        detail = text("unknown_model", models=models) if models else text("no_models")
        raise Problem(422, detail, "unknown_model", param="model")
    if len(request.text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise Problem(413, text("text_too_long", limit=MAX_TEXT_BYTES // 1024), "text_too_long")
    if len(request.images) > MAX_IMAGES:
        raise Problem(422, text("too_many_images", count=MAX_IMAGES), param="images")


def _check_idempotency_key(key: str | None) -> None:
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise Problem(422, text("bad_idempotency_key"), "invalid_idempotency_key")


def _scoped(who: Principal, idempotency_key: str) -> str:
    """A name that no other API key can produce: with it, that key would get this one's answer."""
    return hashlib.sha256(f"{who.id}\0{who.digest}\0{idempotency_key}".encode()).hexdigest()[:32]


async def _stored(
    services: Services, who: Principal, conversation: str, request: ChatRequest, uploads: Mapping[str, Upload]
) -> dict[str, Any]:
    """The parts of the payload that are kept elsewhere: pictures, and what is too large for an envelope."""
    bus, client = services.bus, request.client
    blobs = Blobs(bus) if request.conversation else Blobs(bus, lifetime(bus))
    found: dict[str, Any] = {"files": list(request.attached.get("files", ()))}
    async with services.storing_of(who.id, uploads), bus_timeout():
        found["images"] = [await _store_image(blobs, conversation, url, uploads) for url in request.images]
    for file in request.files:
        async with services.reading[who.id]:
            kind, data = await file_data(file.data, file.name, uploads, "files", file.type)
            if image := image_type(data):
                found["images"].append(await blobs.put(conversation, data, image))
            else:
                found["files"].append(await _store_file(services, blobs, conversation, file.name, kind, data))
    if client.plain:
        listed = [{"role": message.role, "text": message.text} for message in client.before if message.text]
        return {name: value for name, value in {**found, "history": listed}.items() if value}

    async with services.storing_of(who.id, uploads), bus_timeout():
        before, after = [
            await store_pictures(blobs, conversation, part, uploads) for part in (client.before, client.after)
        ]
        client = replace(client, before=before, after=after)
        found["request"] = await store_request(bus, conversation, client)
    return {name: value for name, value in found.items() if value}


async def _store_file(
    services: Services, blobs: Blobs, conversation: str, name: str, kind: str, data: bytes
) -> dict[str, str]:
    """Store a recording as it is, and of any other file its text. Raises Problem."""
    if not kind.startswith("audio/"):
        data = (await read_text(services, data, name, kind, "files")).encode("utf-8", "replace")
        kind = "text/plain"
    return {"blob": await blobs.put(conversation, data, kind), "name": name, "type": kind}


async def file_data(
    given: str, name: str, uploads: Mapping[str, Upload], param: str, kind: str = ""
) -> tuple[str, bytes]:
    """Media type and bytes of the file ``name``: an upload, a data URL, or base64 of the media type ``kind``. Raises
    Problem."""
    if (upload := uploads.get(given)) is not None:
        return upload.media_type, await asyncio.to_thread(upload.read)
    found = FILE_URL.fullmatch(given)
    kind, encoded = (found[1], found[2]) if found else (kind, given)
    with suppress(ValueError):  # of base64
        if kind:
            return media_type(kind, name), base64.b64decode(encoded, validate=True)
    raise Problem(422, text("bad_file_data"), param=param)


def media_type(given: str, name: str) -> str:
    """The media type of the file ``name``, which was ``given``."""
    kind = given.partition(";")[0].strip().lower()
    if not kind or kind == "application/octet-stream":
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return kind


async def read_text(services: Services, data: bytes, name: str, kind: str, param: str) -> str:
    """The text of the file ``name`` of the media type ``kind``. Raises Problem for one that cannot be read."""
    try:
        async with services.readers:
            return await text_of(data, services.settings.document_chars)
    except UnreadableFile as unreadable:
        detail = text(unreadable.key, name=repr(name[:100]), type=kind)
        raise Problem(400, detail, "unsupported_file", param=param) from None


async def store_pictures(
    blobs: Blobs, conversation: str, messages: Sequence[ClientMessage], uploads: Mapping[str, Upload]
) -> tuple[ClientMessage, ...]:
    """``messages`` with ids of blobs for images; of the oldest of too many stays a mark in the text. Raises Problem."""
    with_pictures = [message for message in messages if message.images][-MAX_IMAGES:]
    return tuple([
        replace(one, images=tuple([await _store_image(blobs, conversation, url, uploads) for url in one.images]))
        if one in with_pictures else replace(one, text=f"{one.text}\n[image]".strip(), images=())
        if one.images else one
        for one in messages
    ])  # fmt: skip


async def _store_image(blobs: Blobs, conversation: str, url: str, uploads: Mapping[str, Upload]) -> str:
    if stored := STORED.fullmatch(url):
        return stored[1]
    data = b""
    if (upload := uploads.get(url)) is not None:
        data = await asyncio.to_thread(upload.read)
    elif found := DATA_URL.fullmatch(url):
        try:
            data = base64.b64decode(found[1], validate=True)
        except ValueError:
            raise Problem(422, text("bad_base64"), param="images") from None
    if not (kind := image_type(data)):
        raise Problem(422, text("bad_image"), param="images")
    return await blobs.put(conversation, data, kind)


def _title(who: Principal, end_user: str) -> str:
    """What transcripts call the conversation: the key's name, and whom its owner calls the user."""
    shown = "".join(char if char.isprintable() else " " for char in end_user[:TITLE_CHARS]).strip()
    return f"{who.name}: {shown}" if shown else who.name


def _refused(received: Received) -> Problem:
    detail, code = received.reply, received.outcome.lower()
    if received.outcome in OVERLOADED:
        status, seconds = OVERLOADED[received.outcome]
        return Problem(status, detail, code, headers={"Retry-After": str(seconds)})
    if received.outcome == "CONFLICT":
        return Problem(422, text("idempotency_conflict"), "idempotency_conflict")
    return Problem(413 if received.outcome == "TOO_LARGE" else 422, detail, headers=NO_RETRY)
