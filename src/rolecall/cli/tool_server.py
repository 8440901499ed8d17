"""`rolecall tools`: the application's tools and roles for others, by the Model Context Protocol over HTTP or standard
input and output."""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rolecall.agent.role import Role
from rolecall.agent.tools import FAILED, Toolbox, no_tool
from rolecall.background import BackgroundTasks
from rolecall.bus.envelope import check_conversation
from rolecall.bus.events import Event
from rolecall.bus.process.processes import process_name
from rolecall.bus.turn import FIRST_ROLE
from rolecall.cli.runner import run_loop, stop_requested, until_stopped
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.client import Assistant
from rolecall.config import Application, load
from rolecall.errors import ConfigError, MissingExtra, RolecallError
from rolecall.frontends.sockets import LocalOnly, address_of, is_local, listen
from rolecall.session import open_session
from rolecall.version import __version__

if TYPE_CHECKING:
    import mcp_types
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from uvicorn import Config


DRAIN_SECONDS = 5
PATH = "/mcp"
FRONT = "mcp"
"""The first part of the conversations that clients start, and its name in transcripts."""
ASK = "ask"
MAX_NAME = 100
PROGRESS_SECONDS = 0.25
"""At most one piece of an answer is told in this time."""
CLOSE_SECONDS = 3.0
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
Report = Callable[[float, str], Awaitable[None]]
"""Tells the client how far a call is, as a growing number and a text."""
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 1, "description": "The message to answer."},
        "conversation": {
            "type": "string", "maxLength": MAX_NAME,
            "description": "A name of your choice. Messages with the same name continue one conversation, which is "
            "remembered; without a name, each message stands alone.",
        },
    },
    "required": ["text"],
    "additionalProperties": False,
}  # fmt: skip


# ── the verb ───────────────────────────────────────────────────────────────────────────────────────


def serve(
    app_dir: Path | None, console: Console, *, host: str, port: int | None, stdio: bool = False, roles: bool = True
) -> int:
    """Offer the tools of config.py, and its ``roles`` if wanted, until Ctrl-C or SIGTERM, with TOOLS_SERVER_WORKERS
    processes; or with ``stdio`` to the one client that started this."""
    application = load(app_dir)
    _check(application, roles)
    log_to_stderr(application.settings)
    if stdio:
        return run_loop(_serve_stdio(application, roles)) or 0
    settings, wanted = application.settings, port or application.settings.tools_port
    if settings.tools_key is None and not is_local(host):
        raise ConfigError(f"--host {host} lets other machines in: set TOOLS_KEY, which clients send as a bearer token")
    with listen(host, wanted, names=("--host", "TOOLS_PORT")) as listener:
        _show(console, application, listener, wanted, roles)
        config = _configured(application.directory, host, roles, settings.tools_server_workers)
        if settings.tools_server_workers > 1:
            return _serve_by_processes(config, listener)
        return run_loop(_serve_here(config, listener)) or 0


def offered(directory: Path, host: str, roles: bool) -> Any:
    """The ASGI application of one process."""
    _end_with_the_parent()
    application = load(directory)
    log_to_stderr(application.settings)
    key = secret.get_secret_value() if (secret := application.settings.tools_key) else ""
    app = tools_app(application.tools, _roles(application, roles), host, key)
    return app if key else LocalOnly(app, "Only this machine may call tools without a key: set TOOLS_KEY.")


async def _serve_stdio(application: Application, roles: bool) -> int:
    serving = serve_stdio(application.tools, _roles(application, roles))
    async with stop_requested() as wanted:
        await until_stopped(asyncio.create_task(serving, name="rolecall tools"), wanted)
    return 0


def _roles(application: Application, wanted: bool) -> RoleTools | None:
    return RoleTools(application, application.tools) if wanted else None


def _check(application: Application, roles: bool) -> None:
    if not roles and not application.tools.tools:
        raise ConfigError("config.py offers no tools: Config(tools=(function, …)) names those that others may call")
    if importlib.util.find_spec("mcp") is None:
        raise MissingExtra("tools", "rolecall tools")


def _show(console: Console, application: Application, listener: socket.socket, wanted: int, roles: bool) -> None:
    names = [*application.tools.tools, *(RoleTools(application, application.tools).names if roles else ())]
    settings, port = application.settings, listener.getsockname()[1]
    why = "" if port == wanted else f" (port {wanted} is taken)"
    console.print(f"tools at {address_of(listener)}{PATH}{why}: {', '.join(names)}", highlight=False)
    if settings.tools_key is not None:
        console.print("clients must send TOOLS_KEY: Authorization: Bearer …", highlight=False)
    # Whoever started this through a pipe waits for the address.
    console.file.flush()


def _configured(directory: Path, host: str, roles: bool, workers: int) -> Config:
    from rolecall.frontends.uvicorn_server import quiet_config

    return quiet_config(
        partial(offered, directory, host, roles),
        factory=True,
        workers=workers,
        log_level="warning",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


async def _serve_here(config: Config, listener: socket.socket) -> int:
    from rolecall.frontends.uvicorn_server import UvicornServer

    server = UvicornServer(config)
    async with stop_requested() as wanted:
        serving = asyncio.create_task(server.serve([listener]), name="rolecall tools")
        stopping = asyncio.create_task(wanted.wait(), name="rolecall stop requested")
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopping.cancel()
        await serving
    return 0


def _serve_by_processes(config: Config, listener: socket.socket) -> int:
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise RolecallError("a process of the tools server could not start; its log says why")
    return 0


def _end_with_the_parent() -> None:
    """In a process of several: end when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="rolecall parent", daemon=True).start()


# ── the protocol ───────────────────────────────────────────────────────────────────────────────────


def tools_app(toolbox: Toolbox, roles: RoleTools | None, host: str, key: str) -> Asgi:
    """The ASGI application that serves ``toolbox`` and ``roles`` at PATH; clients need ``key`` unless it is empty."""
    app: Asgi = mcp_server(toolbox, roles).streamable_http_app(
        streamable_http_path=PATH, stateless_http=True, host=host
    )
    return KeyGuard(app, key) if key else app


async def serve_stdio(toolbox: Toolbox, roles: RoleTools | None) -> None:
    """Serve one client on standard input and output, until it closes them."""
    from mcp.server.stdio import stdio_server

    server = mcp_server(toolbox, roles)
    async with stdio_server() as (receive, send):
        await server.run(receive, send, server.create_initialization_options())


class KeyGuard:
    """Passes requests with the bearer token ``key`` to ``app``."""

    def __init__(self, app: Asgi, key: str) -> None:
        self._app, self._expected = app, f"bearer {key}".encode()

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and not self._lets_in(scope):
            headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"The key is missing or wrong: TOOLS_KEY as a bearer.\n"})
            return
        await self._app(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + key.strip(), self._expected)


def mcp_server(toolbox: Toolbox, roles: RoleTools | None) -> Server[Any]:
    """The server of ``toolbox`` and ``roles``, for any transport."""
    import mcp_types
    from mcp.server.lowlevel import Server

    async def listed(context: Any, parameters: Any) -> mcp_types.ListToolsResult:
        tools = [
            mcp_types.Tool(name=s.name, description=s.description, input_schema=s.parameters) for s in toolbox.specs
        ]
        return mcp_types.ListToolsResult(tools=[*tools, *(roles.specs() if roles else ())])

    async def called(
        context: ServerRequestContext[Any], parameters: mcp_types.CallToolRequestParams
    ) -> mcp_types.CallToolResult:
        if roles is not None and parameters.name in roles.names:

            async def report(progress: float, message: str) -> None:
                await context.session.report_progress(progress, message=message)

            text, failed = await roles.answer(parameters.name, parameters.arguments or {}, report)
        elif roles is not None and parameters.name not in toolbox.tools:
            text, failed = no_tool(parameters.name, [*toolbox.tools, *roles.names]), True
        else:
            result = await toolbox.run(parameters.name, json.dumps(parameters.arguments or {}))
            text, failed = result.text.removeprefix(FAILED) if result.failed else result.text, result.failed
        content = mcp_types.TextContent(type="text", text=text)
        return mcp_types.CallToolResult(content=[content], is_error=failed)

    @asynccontextmanager
    async def lifespan(server: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            yield {}
        finally:
            if roles is not None:
                await roles.aclose()

    return Server("rolecall", version=__version__, on_list_tools=listed, on_call_tool=called, lifespan=lifespan)


class RoleTools:
    """The roles of ``application`` that answer, as tools: ``ask`` leaves the choice to the manager, ``ask_<role>``
    names one. A call is a turn. The bus is connected to with the first call. ``taken`` are names of other tools."""

    def __init__(self, application: Application, taken: Toolbox) -> None:
        self._application = application
        offered = {ASK: application.role(FIRST_ROLE)}
        offered |= {f"{ASK}_{role.name}": role for role in application.answering_roles}
        self.names: dict[str, Role] = {
            name: role for name, role in offered.items() if role is not None and name not in taken.tools
        }
        self._turns, self._connections = BackgroundTasks(), BackgroundTasks()
        self._opening = asyncio.Lock()
        self._closing = asyncio.Event()
        self._assistant: asyncio.Future[Assistant] | None = None

    def specs(self) -> list[mcp_types.Tool]:
        """The tools as clients see them."""
        import mcp_types

        return [
            mcp_types.Tool(name=name, description=_about(name, role), input_schema=ARGUMENTS)
            for name, role in self.names.items()
        ]

    async def answer(self, name: str, arguments: Mapping[str, Any], report: Report) -> tuple[str, bool]:
        """The answer of a role, or why there is none and True. ``report`` is told how the turn goes. Cancelling this
        call cancels the turn."""
        # In a task of its own: a cancelled handler is cancelled again at each await, and could not take back its turn.
        turn = self._turns.start(self._turn(name, arguments, report), f"mcp {name}")
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            turn.cancel()
            raise

    async def aclose(self) -> None:
        """Cancel what is running and disconnect. Idempotent."""
        self._turns.cancel()
        await self._turns.drain(CLOSE_SECONDS)
        self._closing.set()
        await self._connections.drain(CLOSE_SECONDS)

    async def _turn(self, name: str, arguments: Mapping[str, Any], report: Report) -> tuple[str, bool]:
        text, named = arguments.get("text"), arguments.get("conversation", "")
        if not isinstance(text, str) or not text.strip() or not isinstance(named, str) or len(named) > MAX_NAME:
            return f"expected the arguments text and, at will, conversation: up to {MAX_NAME} characters", True
        role = "" if name == ASK else self.names[name].name
        try:
            conversation = check_conversation(f"{FRONT}:{named}") if named else ""
            assistant = await self._connected()
            await assistant.check_running()
            reply = await assistant.ask(
                text, conversation=conversation, role=role, user=FRONT, payload={} if named else {"verbatim": True},
                on_event=CallProgress(report).tell,
            )  # fmt: skip
        except RolecallError as error:
            return str(error), True
        return reply.text, False

    async def _connected(self) -> Assistant:
        async with self._opening:
            if self._assistant is None:
                opened = asyncio.get_running_loop().create_future()
                self._connections.start(self._keep(opened), "mcp connection")
                self._assistant = opened
            try:
                return await asyncio.shield(self._assistant)
            except RolecallError:
                self._assistant = None  # the next call tries again
                raise

    async def _keep(self, opened: asyncio.Future[Assistant]) -> None:
        """Hold a connection open until the server closes."""
        try:
            async with (
                open_session(self._application, process_name(), start=False) as session,
                session.listening() as wakeups,
            ):
                opened.set_result(Assistant(session, wakeups, FRONT))
                await self._closing.wait()
        except RolecallError as error:
            if not opened.done():
                opened.set_exception(error)
        finally:
            opened.cancel()


@dataclass
class CallProgress:
    """Tells a client what happens in a turn: who works on it, and the answer as it is made."""

    report: Report
    count: int = 0
    said: list[str] = field(default_factory=list)
    told_at: float = 0.0

    async def tell(self, event: Event) -> None:
        """Report ``event``. A client that has left is none of the turn's concern here."""
        if event.kind == "queued":
            await self._report(f"waiting, place {event.place}")
        elif event.kind == "started":
            self.said.clear()
            await self._report(f"{event.role} is working")
        elif event.kind == "delta":
            self.said.append(event.text)
            if time.monotonic() - self.told_at >= PROGRESS_SECONDS:
                await self._report("".join(self.said))
                self.said.clear()

    async def _report(self, message: str) -> None:
        self.count, self.told_at = self.count + 1, time.monotonic()
        with suppress(Exception):  # the boundary: the SDK does not document what a broken connection raises
            await self.report(self.count, message)


def _about(name: str, role: Role) -> str:
    if name == ASK:
        return "Ask the assistant; it chooses who answers."
    return f"Ask the agent {role.name}: {role.description or role.name}"
