"""The way in: a message that came by HTTP becomes a turn, or a problem."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rolecall.bus.blobs import Blobs
from rolecall.bus.envelope import MAX_TEXT_BYTES, check_conversation
from rolecall.bus.turn import FIRST_ROLE
from rolecall.errors import RolecallError
from rolecall.frontends.front import Received
from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.problems import DOES_NOT_HELP, Problem, promptly
from rolecall.frontends.http.services import Services
from rolecall.frontends.http.task import Place

PREFIX = "http:"
IMAGE = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,(.*)", re.ASCII | re.DOTALL)
IMAGES = 16
KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)
STATUSES = {"FULL": (429, 5), "BUSY": (503, 10)}


@dataclass(frozen=True)
class Said:
    """What somebody wants to be answered. ``history`` are messages, {role, text}, that go before it in place of what
    is remembered, or beside that when they are all of the system's."""

    text: str
    conversation: str = ""
    role: str = ""
    model: str = ""
    priority: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    images: Sequence[str] = ()
    history: Sequence[Mapping[str, str]] = ()

    def payload(self, blobs: Sequence[str]) -> dict[str, Any]:
        """What travels beside the text: only what was given, so that a repeat is the same."""
        given = {
            "role": self.role, "model": self.model, "metadata": dict(self.metadata), "images": list(blobs),
            "history": list(self.history),
        }  # fmt: skip
        return {name: value for name, value in given.items() if value}


async def enter(here: Services, who: Principal, said: Said, idempotency: str | None) -> Received:
    """Take what was said, as a turn or as a command that was carried out at once. Raises Problem when it is refused,
    and what is answered with 503 when the bus is away."""
    _check(here, said)
    conversation = conversation_of(who, said.conversation, _checked(idempotency))
    async with promptly():
        images = [await _put_away(here, conversation, one) for one in said.images]
        received = await here.front.receive(
            conversation,
            said.text,
            payload=said.payload(images),
            idempotency=_scoped(who, idempotency) if idempotency else None,
            principal=f"{PREFIX}{who.id}",
            title=who.name,
            priority=said.priority,
        )
    if received.refused:
        raise _refusal(received)
    return received


def conversation_of(who: Principal, given: str, idempotency: str | None = None) -> str:
    """The whole id of the conversation that ``given`` names for this key; a new one without a name. A repeat of a
    request comes to the same one. Raises Problem."""
    own = f"{PREFIX}{who.id}:"
    if not given:
        return own + (_scoped(who, idempotency)[:16] if idempotency else secrets.token_hex(8))
    if given.startswith(PREFIX) and not given.startswith(own) and not who.admin:
        raise Problem(403, "This conversation was begun with another key.", param="conversation_id")
    try:
        return check_conversation(given if given.startswith(PREFIX) else own + given)
    except RolecallError as error:
        raise Problem(422, f"conversation_id: {error}.", param="conversation_id") from None


def headers_of(received: Received) -> dict[str, str]:
    """The headers that name the turn and its conversation."""
    headers = {"X-Conversation-Id": quote(received.conversation, safe=":/@")}
    if received.turn:
        task = Place(received.conversation, received.turn).id
        headers |= {"X-Task-Id": task, "Location": f"/chat/task/{task}"}
    return headers


def _check(here: Services, said: Said) -> None:
    roles = sorted(role.name for role in here.application.roles if role.name != FIRST_ROLE)
    if said.role and said.role not in roles:
        raise Problem(422, f"role: there are {', '.join(roles)}.", "unknown_role", param="role")
    if said.model and said.model not in here.application.model_names:
        names = ", ".join(here.application.model_names) or "none"
        raise Problem(422, f"model: there are {names}.", "unknown_model", param="model")
    if len(said.text.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise Problem(413, f"text: at most {MAX_TEXT_BYTES // 1024} kB of UTF-8 are allowed.", "text_too_long")
    if len(said.images) > IMAGES:
        raise Problem(422, f"images: at most {IMAGES} are allowed.", param="images")


def _checked(idempotency: str | None) -> str | None:
    if idempotency is not None and not KEY.fullmatch(idempotency):
        raise Problem(422, "Idempotency-Key: 1 to 255 visible ASCII characters are allowed.", "invalid_idempotency_key")
    return idempotency


def _scoped(who: Principal, idempotency: str) -> str:
    """A name that no other key can come to: it would give another's answer away."""
    digest = hashlib.sha256(f"{who.id}\0{who.digest}\0{idempotency}".encode()).hexdigest()
    return digest[:32]


async def _put_away(here: Services, conversation: str, url: str) -> str:
    found = IMAGE.fullmatch(url)
    if found is None:
        raise Problem(422, "An image is a data URL of PNG, JPEG, GIF or WebP: data:image/png;base64,…", param="images")
    try:
        data = base64.b64decode(found[2], validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "The base64 of an image is broken.", param="images") from None
    return await Blobs(here.bus).put(conversation, data, found[1])


def _refusal(received: Received) -> Problem:
    told, code = received.reply, received.outcome.lower()
    if received.outcome in STATUSES:
        status, seconds = STATUSES[received.outcome]
        return Problem(status, told, code, headers={"Retry-After": str(seconds)})
    if received.outcome == "CONFLICT":
        return Problem(422, "This Idempotency-Key was used with another request.", "idempotency_conflict")
    return Problem(413 if received.outcome == "TOO_LARGE" else 422, told, headers=DOES_NOT_HELP)
