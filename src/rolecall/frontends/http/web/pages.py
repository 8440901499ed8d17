"""The web page: chat, conversations, now, dead letters. What changes on them comes by live.py and the APIs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from rolecall.config import Role
from rolecall.errors import ServerError
from rolecall.frontends.http import operators
from rolecall.frontends.http.auth import Principal, require
from rolecall.frontends.http.metrics import sampling
from rolecall.frontends.http.services import Here, Services
from rolecall.frontends.http.web import live, rendering, views
from rolecall.frontends.http.web.rendering import render

router = APIRouter(routes=[*rendering.router.routes, *live.router.routes], include_in_schema=False, lifespan=sampling)
IDEAS = ("What can you do?", "Write a haiku about queues.", "/help")
TITLES = {403: "Not for this key", 404: "Not found", 503: "The bus is away"}
Filled = Callable[[Principal], Awaitable[Mapping[str, Any]]]
Page = Annotated[int, Query(ge=1, le=1_000_000)]


@router.get("/")
async def chat(request: Request, here: Here) -> Response:
    """Talk to the agents."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {"roles": [_described(role) for role in here.application.roles if _answers(role)], "ideas": IDEAS}

    return await _shown(request, here, "chat.html", "Chat", fill, admin=False)


@router.get("/web/login")
async def log_in(request: Request, here: Here, next: str = "/") -> Response:
    """Ask for a key."""
    # Only to a page of ours: //host and /\host lead elsewhere.
    local = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isprintable()
    return render(here, request, None, "login.html", next=next if local else "/")


@router.get("/web/conversations")
async def list_conversations(request: Request, here: Here, query: live.Asked) -> Response:
    """All of them, searched and filtered."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {"found": await views.listed(here, query), "query": query}

    return await _shown(request, here, "conversations.html", "Conversations", fill)


@router.get("/web/conversations/{which}")
async def show_conversation(request: Request, here: Here, which: str) -> Response:
    """One of them, by its id, its directory or a short turn id."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        found = await views.conversation(here, which)
        return {"shown": found.shown, "turns": found.turns, "records": found.records, "total": found.total}

    return await _shown(request, here, "conversation.html", "Conversations", fill)


@router.get("/web/now")
async def show_now(request: Request, here: Here) -> Response:
    """What is going on."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {}

    return await _shown(request, here, "now.html", "Now", fill)


@router.get("/web/dead")
async def list_dead(request: Request, here: Here, page: Page = 1) -> Response:
    """What was given up on."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {"found": await operators.list_dead(here, page, 20)}

    return await _shown(request, here, "dead.html", "Dead letters", fill)


async def _shown(
    request: Request, here: Services, template: str, name: str, fill: Filled, *, admin: bool = True
) -> Response:
    """The page, or what keeps it from being shown: the login, or a page that says why."""
    who: Principal | None = None
    try:
        who = await require(request)
        who = await require(request, admin)
        values = await fill(who)
    except HTTPException as refused:
        if refused.status_code == 401:
            there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/web/login?next={quote(there, safe='/')}", 303)
        return _problem(request, here, who, refused.status_code, str(refused.detail))
    except ServerError:
        return _problem(request, here, who, 503, "It cannot be reached at the moment. Load this page again soon.")
    return render(here, request, who, template, name, **values)


def _problem(request: Request, here: Services, who: Principal | None, status: int, detail: str) -> Response:
    title = TITLES.get(status, "This did not work")
    return render(here, request, who, "problem.html", status=status, title=title, detail=detail)


def _answers(role: Role) -> bool:
    return bool(role.models or role.match)


def _described(role: Role) -> dict[str, str]:
    lines = (role.agent.__doc__ or "").strip().splitlines()
    return {"name": role.name, "description": lines[0] if lines else ""}
