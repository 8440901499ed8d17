"""The web page: chat, conversations, now, dead letters. What changes on a page comes from live.py and the API."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from rolecall import stats
from rolecall.bus.process.process_log import LEVELS
from rolecall.bus.process.processes import live_processes
from rolecall.errors import ServerError
from rolecall.frontends.http.auth import Principal, require
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.web import live, operating, own_chats, rendering, views
from rolecall.frontends.http.web.rendering import page_text, render

logger = logging.getLogger(__name__)


@asynccontextmanager
async def sampling(services: Services) -> AsyncIterator[None]:
    """Store samples of the deployment, for the plots of the page *Now*."""
    task = asyncio.create_task(_keep_sampling(services), name="http samples")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _keep_sampling(services: Services) -> None:
    while True:
        wait_ms = stats.SAMPLE_MS
        try:
            wait_ms = await stats.take_sample(services.bus, services.application.role_names)
        except ServerError as error:
            logger.info("no sample: %s", error)
        # Not all processes at once: the first one takes the sample, the others find it.
        await asyncio.sleep(wait_ms / 1000 + random.uniform(0, 0.4))


PARTS = (rendering, live, own_chats, operating)
ROUTES = [route for part in PARTS for route in part.router.routes]
router = APIRouter(routes=ROUTES, include_in_schema=False)
IDEAS = ("idea_abilities", "idea_haiku", "idea_help")
TITLES = {403: "not_allowed", 404: "not_found", 503: "unavailable"}
RANKS = (("user", "rank_user"), ("guest", "rank_guest"), ("admin", "rank_admin"), ("stranger", "rank_stranger"))
Fill = Callable[[Principal], Awaitable[Mapping[str, Any]]]
Page = Annotated[int, Query(ge=1, le=1_000_000)]


@router.get("/")
async def chat(request: Request, services: ServicesDep) -> Response:
    """Chat with the agents."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        roles = [{"name": role.name, "description": role.description} for role in services.application.answering_roles]
        application = services.application
        return {
            "roles": roles, "models": application.model_names, "ideas": IDEAS,
            "blob_megabytes": application.settings.blob_megabytes,
        }  # fmt: skip

    return await _render(request, services, "chat.html", "chat", fill, admin=False)


@router.get("/web/shared/{link}")
async def show_shared(request: Request, services: ServicesDep, link: str) -> Response:
    """Show a shared conversation to anyone who has its link."""
    try:
        _, title = await own_chats.find_shared(services, link)
    except HTTPException as refused:
        return _problem(request, services, None, refused.status_code, str(refused.detail))
    return render(services, request, None, "shared.html", link=link, title=title)


@router.get("/web/offline")
async def show_offline(request: Request, services: ServicesDep) -> Response:
    """Shown by the service worker while the server cannot be reached."""
    title, detail = page_text("server_unreachable"), page_text("offline_help")
    return render(services, request, None, "problem.html", title=title, detail=detail)


@router.get("/web/login")
async def log_in(request: Request, services: ServicesDep, next: str = "/") -> Response:
    """Ask for an API key."""
    # Only to a page of this server: //host and /\host lead elsewhere.
    local = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isprintable()
    return render(services, request, None, "login.html", next=next if local else "/")


@router.get("/web/conversations")
async def list_conversations(request: Request, services: ServicesDep, query: live.QueryDep) -> Response:
    """List and search conversations."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {"found": await views.list_conversations(services, query), "query": query}

    return await _render(request, services, "conversations.html", "conversations", fill)


@router.get("/web/conversations/{which}")
async def show_conversation(request: Request, services: ServicesDep, which: str) -> Response:
    """Show a conversation, by its id, its directory or a short turn id."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        found = await views.show_conversation(services, which)
        return {"shown": found.shown, "turns": found.turns, "records": found.records, "total": found.total}

    return await _render(request, services, "conversation.html", "conversations", fill)


@router.get("/web/now")
async def show_now(request: Request, services: ServicesDep) -> Response:
    """Show what is happening now."""

    async def fill(_: Principal) -> Mapping[str, Any]:
        return {"span": request.query_params.get("span", "")}

    return await _render(request, services, "now.html", "now", fill)


@router.get("/web/log")
async def show_process_log(request: Request, services: ServicesDep, process: live.Text = "") -> Response:
    """Show what the processes log."""

    async def fill(_: Principal) -> Mapping[str, Any]:
        names = [state.process for state in await live_processes(services.bus)]
        level = request.query_params.get("level", LEVELS[0])
        return {"names": dict.fromkeys(filter(None, (*names, process))), "process": process, "level": level}

    return await _render(request, services, "log.html", "log", fill)


@router.get("/web/usage")
async def show_usage(request: Request, services: ServicesDep) -> Response:
    """Show tokens and cost by day."""
    return await _render(request, services, "usage.html", "usage", _nothing)


@router.get("/web/people")
async def show_people(request: Request, services: ServicesDep) -> Response:
    """Show API keys, members and invitations."""

    async def fill(_: Principal) -> Mapping[str, Any]:
        return {"ranks": RANKS}

    return await _render(request, services, "people.html", "people", fill)


async def _nothing(_: Principal) -> Mapping[str, Any]:
    return {}


@router.get("/web/dead")
async def list_dead(request: Request, services: ServicesDep, page: Page = 1, search: live.Text = "") -> Response:
    """List dead letters."""

    async def fill(who: Principal) -> Mapping[str, Any]:
        return {"found": await operating.letters(services, search, page), "search": search}

    return await _render(request, services, "dead.html", "dead_letters", fill)


async def not_found(request: Request, error: Exception) -> Response:
    """Answer a browser that asks for a page which does not exist with one; raise ``error`` for any other client."""
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        raise error
    who = None
    with suppress(HTTPException, ServerError):
        who = await require(request)
    return _problem(request, request.app.state.services, who, 404, page_text("not_found_help"))


async def _render(
    request: Request, services: Services, template: str, name: str, fill: Fill, *, admin: bool = True
) -> Response:
    """Render the page; or redirect to the login, or render a page that says why it cannot be shown."""
    who: Principal | None = None
    try:
        who = await require(request)
        who = await require(request, admin)
        values = await fill(who)
    except HTTPException as refused:
        if refused.status_code == 401:
            there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/web/login?next={quote(there, safe='/')}", 303)
        return _problem(request, services, who, refused.status_code, str(refused.detail))
    except ServerError:
        return _problem(request, services, who, 503, page_text("unavailable_help"))
    return render(services, request, who, template, name, **values)


def _problem(request: Request, services: Services, who: Principal | None, status: int, detail: str) -> Response:
    title = page_text(TITLES.get(status, "problem"))
    return render(services, request, who, "problem.html", status=status, title=title, detail=detail)
