"""What every front end promises: the FrontEnd protocol, once and in order, through a crash, until it has drained.

The suite runs the example front end against a local chat system; the same checks of shape hold for Telegram, HTTP and
the terminal, whose own tests in tests/integration show the same promises on their own protocols.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rolecall import Agent, Context, Envelope, Role, version
from rolecall.config import Application
from rolecall.errors import ConfigError
from rolecall.frontends.front import FrontEnd
from rolecall.frontends.front_ends import front_ends, serve
from rolecall.frontends.http.hosting import HttpFrontEnd
from rolecall.frontends.telegram.telegram_front import TelegramFront
from rolecall.frontends.terminal.terminal import Chat
from rolecall.settings import Settings
from tests.deployment import Deployment, deployed
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("webhook_frontend", ROOT / "examples/webhook_frontend.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WebhookFrontEnd


Webhook = example()


class ManagerAgent(Agent):
    """Echoes."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(f"echo: {envelope.text}")


class ChatSystem:
    """The other side of the example: it records what is posted to it, and may be out of order."""

    def __init__(self) -> None:
        self.posts: list[dict[str, str]] = []
        self.failures = 0
        self.port = 0

    async def receive(self, request: Request) -> Response:
        if self.failures:
            self.failures -= 1
            return Response(status_code=500)
        self.posts.append(await request.json())
        return Response(status_code=204)

    def texts(self, chat: str) -> list[str]:
        """What was said in ``chat``; a repeat with the same ID counts once, as the example's docs tell its users."""
        return list({post["id"]: post["text"] for post in self.posts if post["chat"] == chat}.values())


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()


@pytest.fixture
async def chats() -> AsyncIterator[ChatSystem]:
    system = ChatSystem()
    app = Starlette(routes=[Route("/callback", system.receive, methods=["POST"])])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        system.port = listener.getsockname()[1]
        server = _Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        yield system
        server.should_exit = True
        await serving


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(tmp_path, (Role(ManagerAgent, instances=4),)) as running:
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Users:
    """People at the chat system."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/messages"
        self.client = httpx.AsyncClient(trust_env=False)

    async def say(self, chat: str, text: str, key: str = "") -> httpx.Response:
        return await self.client.post(self.url, json={"chat": chat, "text": text, "id": key or f"{chat}-{text}"})

    async def ready(self) -> None:
        async def answers() -> bool:
            try:
                return (await self.client.post(self.url, content=b"{}")).status_code == 400
            except httpx.TransportError:
                return False

        await wait_until(answers)


@asynccontextmanager
async def at_work(app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Users]:
    port = free_port()
    monkeypatch.setenv("WEBHOOK_CALLBACK", f"http://127.0.0.1:{chats.port}/callback")
    monkeypatch.setenv("WEBHOOK_PORT", str(port))
    running = asyncio.create_task(serve(Webhook, Webhook.name, app.session, app.runtime.wakeups))
    users = Users(port)
    try:
        await users.ready()
        yield users
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await users.client.aclose()


@pytest.mark.parametrize("kind", [Webhook, HttpFrontEnd, TelegramFront, Chat], ids=lambda kind: kind.__name__)
def test_a_front_end_has_a_name_and_runs_delivers_and_drains(kind: type[FrontEnd]) -> None:
    assert hasattr(kind, "name")
    for method in ("run", "deliver", "drain"):
        assert inspect.iscoroutinefunction(getattr(kind, method)), method


async def test_answers_come_back_where_the_questions_came_from_once_and_in_order(
    app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(app, chats, monkeypatch) as users:
        for n in range(5):
            for chat in ("1", "2"):
                assert (await users.say(chat, f"m{n}")).status_code == 202
        wanted = [f"echo: m{n}" for n in range(5)]
        await wait_until(lambda: chats.texts("1") == chats.texts("2") == wanted)


async def test_a_message_that_is_sent_twice_is_answered_once(
    app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(app, chats, monkeypatch) as users:
        first = await users.say("1", "hello", "m-7")
        again = await users.say("1", "hello", "m-7")
        assert first.json() == again.json()
        await users.say("1", "next")
        await wait_until(lambda: chats.texts("1") == ["echo: hello", "echo: next"])


async def test_an_answer_that_cannot_be_delivered_yet_is_delivered_later_and_in_order(
    app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(app, chats, monkeypatch) as users:
        chats.failures = 2
        await users.say("1", "a")
        await users.say("1", "b")
        await wait_until(lambda: chats.texts("1") == ["echo: a", "echo: b"])


async def test_what_was_accepted_before_a_crash_is_delivered_by_the_next_process(
    app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rolecall.frontends.front_ends.DRAIN_SECONDS", 0.2)
    port = free_port()
    monkeypatch.setenv("WEBHOOK_CALLBACK", f"http://127.0.0.1:{free_port()}/nobody")
    monkeypatch.setenv("WEBHOOK_PORT", str(port))
    lost = asyncio.create_task(serve(Webhook, Webhook.name, app.session, app.runtime.wakeups))
    users = Users(port)
    await users.ready()
    await users.say("1", "hello")
    lost.cancel()
    await asyncio.gather(lost, return_exceptions=True)
    async with at_work(app, chats, monkeypatch):
        await wait_until(lambda: chats.texts("1") == ["echo: hello"])
    await users.client.aclose()


async def test_a_notice_reaches_the_user_without_a_question(
    app: Deployment, chats: ChatSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rolecall.bus.conversation import notify

    async with at_work(app, chats, monkeypatch):
        await notify(app.session.bus, "webhook:1", "Your export is ready.")
        await wait_until(lambda: chats.texts("1") == ["Your export is ready."])


class NoDeliver:
    name = "nodeliver"

    async def run(self) -> None: ...

    async def drain(self) -> None: ...


class NotAsync(NoDeliver):
    name = "notasync"

    def deliver(self, entry: object) -> None: ...


class BadName(NoDeliver):
    name = "a:b"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((NoDeliver,), r"front end 'nodeliver' \(.*NoDeliver\) is invalid: expected an async method deliver\(entry\)"),
        ((NotAsync,), r"front end 'notasync' .* expected an async method deliver\(entry\)"),
        ((BadName,), "its name is 'a:b'; expected a class attribute `name`"),
        ((7,), "its name is None; expected"),
        ((Webhook, Webhook), "front end 'webhook' is configured twice"),
    ],
)
def test_a_front_end_that_breaks_the_protocol_is_one_clear_line(
    tmp_path: Path, given: tuple[object, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        front_ends(Application(tmp_path, (), Settings(), {}, frontends=given))
    assert "\n" not in str(refused.value)


def test_a_package_with_a_broken_entry_point_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("discord", "not_there:FrontEnd", "rolecall.frontends")
    monkeypatch.setattr(version, "_installed", lambda path: EntryPoints([broken]))
    with pytest.raises(ConfigError, match=r"^front end 'discord' of package not_there cannot be loaded: ModuleNot"):
        front_ends(Application(tmp_path, (), Settings(), {}))
