"""What the chat page asks for: a user's own conversations, and everything one does with them."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from rolecall.bus.blobs import IMAGE_TYPES, Blobs
from rolecall.bus.conversation import history, prefer, preferences_of
from rolecall.frontends.http.auth import Principal, User
from rolecall.frontends.http.body import Uploads
from rolecall.frontends.http.intake import (
    MAX_FILES,
    MAX_IMAGES,
    PREFIX,
    AcceptLanguage,
    ChatRequest,
    IdempotencyKey,
    MessageFile,
    conversation_of,
    submit,
)  # fmt: skip
from rolecall.frontends.http.problems import Problem, bus_timeout, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.task import Task, accepted_task, conversation_in, link_of
from rolecall.frontends.http.web.thread import MOST_ENTRIES, first_words, thread_of
from rolecall.transcripts.reading import Filters, Summary
from rolecall.transcripts.record import conversation_dir

router = APIRouter(include_in_schema=False)
MOST_ROWS = 200
MOST_READ = 1000
"""Of how many conversations it is looked up whether they are pinned."""
OF_PAGE = "web-"
"""How the names begin that the page gives to conversations."""
TITLE_CHARS = 100
UNNAMED = re.compile(r"[0-9a-f]{16}|(?:embeddings|transcriptions)-\d{1,2}")
"""The names of conversations that a program began without naming them, and of those of /v1/embeddings and
/v1/audio/transcriptions."""
PICTURE = re.compile(r"[0-9a-f]{32}")
FENCE = re.compile(r"^ {0,3}(```+(?=[^`\n]*$)|~~~+)(.*)$", re.MULTILINE)
"""A line that begins or ends a code block of Markdown."""
SHARED = re.compile(r"([A-Za-z0-9_-]{1,400})\.([A-Za-z0-9_-]{22})", re.ASCII)
Name = Annotated[str, Path(max_length=200)]


class PageMessage(BaseModel):
    """A message of the page. ``again`` is the turn whose place it takes: its images and files are kept."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    text: str = ""
    role: str = Field("", max_length=40)
    model: str = Field("", max_length=200)
    images: list[str] = Field([], max_length=MAX_IMAGES)
    files: list[MessageFile] = Field([], max_length=MAX_FILES)
    again: str = Field("", max_length=20, pattern=r"^\d*$")


class ChatSettings(BaseModel):
    """What a user sets for a conversation; what is None stays."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = Field(None, max_length=TITLE_CHARS)
    pinned: bool | None = None
    shared: bool | None = None


@router.get("/web/chat")
async def list_chats(
    services: ServicesDep, who: User, search: Annotated[str, Query(max_length=200)] = ""
) -> dict[str, Any]:
    """The stored conversations of this key, pinned ones first, then the most recently active."""
    return {"conversations": await stored_conversations(services, who, search)}


@router.post("/chat/page", status_code=202)
async def send(
    body: PageMessage, services: ServicesDep, who: User, uploads: Uploads, key: IdempotencyKey = None,
    language: AcceptLanguage = "",
) -> Task:  # fmt: skip
    """Take a message. Its path is that of large bodies."""
    conversation = conversation_of(who, body.name)
    images, files = await _kept(services, conversation, body.again) if body.again else ((), ())
    if not (body.text.strip() or body.images or body.files or body.again):
        raise Problem(422, text("no_text"), param="text")
    request = ChatRequest(
        body.text, conversation, body.role, body.model, images=(*(f"blob:{one}" for one in images), *body.images),
        files=body.files, attached={"files": files}, again=body.again, asks=True, language=language,
    )  # fmt: skip
    received = await submit(services, who, request, key, uploads)
    return (await accepted_task(services.bus, received)).task


@router.get("/web/chat/{name:path}")
async def show_chat(services: ServicesDep, who: User, name: Name) -> dict[str, Any]:
    """The messages of a conversation, its tasks that have not ended, and its settings."""
    conversation = conversation_of(who, name)
    async with bus_timeout():
        thread, settings = await asyncio.gather(
            thread_of(services, conversation), preferences_of(services.bus, conversation)
        )
    return {**thread, **_settings(conversation, settings)}


@router.post("/web/chat/{name:path}")
async def set_chat(services: ServicesDep, who: User, name: Name, body: ChatSettings) -> dict[str, Any]:
    """Rename, pin or share a conversation, or undo that."""
    conversation, bus = conversation_of(who, name), services.bus
    changes = {
        "title": None if body.title is None else " ".join(body.title.split()),
        "pinned": None if body.pinned is None else "yes" if body.pinned else "",
        "shared": None if body.shared is None else secrets.token_urlsafe(16) if body.shared else "",
    }
    known = await preferences_of(bus, conversation)
    for preference, value in changes.items():
        if value is not None and not (preference == "shared" and value and known.get("shared")):
            secret = preference == "shared"
            await prefer(bus, conversation, preference, value, instance=services.front.instance, secret=secret)
    return _settings(conversation, await preferences_of(bus, conversation))


@router.delete("/web/chat/{name:path}", status_code=204)
async def delete_chat(services: ServicesDep, who: User, name: Name) -> None:
    """Delete a conversation for good."""
    await services.erase(conversation_of(who, name))


@router.get("/web/export/{form}/{name:path}")
async def export(services: ServicesDep, who: User, form: Literal["md", "json"], name: Name) -> Response:
    """Download a conversation as Markdown or JSON."""
    conversation = conversation_of(who, name)
    thread, settings = await asyncio.gather(
        thread_of(services, conversation, 0), preferences_of(services.bus, conversation)
    )
    found = thread["exchanges"]
    first = next((one["said"] for one in found if one.get("said")), name)
    title = settings.get("title") or " ".join(first[:TITLE_CHARS].split())
    headers = {"content-disposition": f'attachment; filename="{conversation_dir(conversation)}.{form}"'}
    if form == "json":
        document = {"conversation": conversation, "title": title, "messages": found}
        return Response(
            json.dumps(document, ensure_ascii=False, indent=2), media_type="application/json", headers=headers
        )
    return Response(_markdown(title, found), media_type="text/markdown; charset=utf-8", headers=headers)


@router.get("/web/pictures/{picture}/{name:path}")
async def show_picture(services: ServicesDep, who: User, picture: str, name: Name) -> Response:
    """A picture of a conversation, for as long as it is stored."""
    found = None
    if PICTURE.fullmatch(picture):
        found = await Blobs(services.bus).get(conversation_of(who, name), picture)
    if found is None or found.media_type not in IMAGE_TYPES:
        raise Problem(404, text("no_file"))
    return Response(found.data, media_type=found.media_type, headers={"cache-control": "private, max-age=86400"})


@router.get("/web/shared/{link}/thread")
async def show_shared(services: ServicesDep, link: str) -> dict[str, Any]:
    """The messages of a shared conversation, for anyone who has its link."""
    conversation, title = await find_shared(services, link)
    thread = await thread_of(services, conversation)
    hidden = ("images", "files", "turn")
    shown = [{name: value for name, value in one.items() if name not in hidden} for one in thread["exchanges"]]
    return {"title": title, "exchanges": shown, "cut": thread["cut"]}


async def find_shared(services: Services, link: str) -> tuple[str, str]:
    """The conversation that ``link`` shares, and its title. Raises Problem (404), also once its key is revoked."""
    found = SHARED.fullmatch(link)
    conversation = conversation_in(found[1]) if found else ""
    async with bus_timeout():
        settings = await preferences_of(services.bus, conversation) if conversation.startswith(PREFIX) else {}
        owned = await services.auth.exists(conversation.removeprefix(PREFIX).partition(":")[0])
    token = settings.get("shared", "")
    if found is None or not token or not owned or not hmac.compare_digest(token, found[2]):
        raise Problem(404, text("no_shared"))
    return conversation, settings.get("title", "")


async def stored_conversations(services: Services, who: Principal, search: str = "") -> list[dict[str, Any]]:
    """Rows of this key's conversations: ``name``, ``title``, ``pinned``, ``shared``, ``last`` (ms since 1970)."""
    own = f"{PREFIX}{who.id}:"
    found = await asyncio.to_thread(_find, services, own, search)
    async with bus_timeout():
        settings = await asyncio.gather(*(preferences_of(services.bus, row.conversation) for row in found.values()))
    rows = [
        {"name": name, **_settings(summary.conversation, chosen), "last": summary.last}
        for (name, summary), chosen in zip(found.items(), settings, strict=True)
        if search or chosen.get("pinned") or not UNNAMED.fullmatch(name)
    ]
    rows = sorted(rows, key=lambda row: (not row["pinned"], -row["last"]))[:MOST_ROWS]
    firsts = await asyncio.to_thread(lambda: [first_words(services, found[row["name"]].name) for row in rows])
    return [{**row, "title": row["title"] or first} for row, first in zip(rows, firsts, strict=True)]


def _find(services: Services, own: str, search: str) -> dict[str, Summary]:
    """The conversations whose name begins with ``own``, by the rest of it: those in which ``search`` was said, or that
    a program gave such a name. However many have no name, those that have one are among them."""
    found = {
        summary.conversation.removeprefix(own): summary
        for summary in services.summaries.find(Filters(own))
        if summary.conversation.startswith(own)
    }
    if search:
        said = {summary.name for summary in services.summaries.find(Filters(own, words=search))}
        part = search.casefold()
        found = {
            name: summary
            for name, summary in found.items()
            if summary.name in said or (part in name.casefold() and not name.startswith(OF_PAGE))
        }
    named = [name for name in found if not UNNAMED.fullmatch(name)][:MOST_READ]
    unnamed = [name for name in found if UNNAMED.fullmatch(name)][:MOST_ROWS]
    return {name: found[name] for name in (*named, *unnamed)}


def _settings(conversation: str, chosen: dict[str, str]) -> dict[str, Any]:
    token = chosen.get("shared", "")
    return {
        "title": chosen.get("title", ""),
        "pinned": bool(chosen.get("pinned")),
        "shared": f"/web/shared/{link_of(conversation)}.{token}" if token else "",
    }


async def _kept(services: Services, conversation: str, turn: str) -> tuple[tuple[str, ...], tuple[dict[str, str], ...]]:
    """The images and files of an earlier turn."""
    for entry in await history(services.bus, conversation, MOST_ENTRIES):
        if entry.turn == turn and entry.role == "user":
            return entry.images, entry.files
    return (), ()


def _markdown(title: str, found: list[dict[str, Any]]) -> str:
    parts, you, assistant = [f"# {title}"], text("export_user"), text("export_assistant")
    for one in found:
        if said := one.get("said"):
            parts += [f"**{you}**", _closed(said)]
        if answer := one.get("answer"):
            plain = one.get("plain") or one.get("state") == "failed"
            parts += [f"**{assistant}**", _fenced(answer) if plain else _closed(answer)]
    return "\n\n".join(parts) + "\n"


def _closed(markdown: str) -> str:
    """``markdown`` whose last code block ends with it, also where an answer was cut off."""
    begun = ""
    for fence, more in FENCE.findall(markdown):
        if not begun:
            begun = fence
        elif fence.startswith(begun) and not more.strip():
            begun = ""
    return f"{markdown}\n{begun}" if begun else markdown


def _fenced(written: str) -> str:
    """A code block of Markdown, which shows ``written`` as it is."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", written))])
    return f"{fence}\n{written}\n{fence}"
