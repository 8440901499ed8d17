"""`rolecall models ps|load|unload|clean`: the model servers there are, and what becomes of them."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from rolecall import registry
from rolecall.cli.columns import print_lines, print_table
from rolecall.cli.visit import visiting
from rolecall.cli.welcome import warm_with_bar
from rolecall.config import Application
from rolecall.errors import ConfigError, MissingExtra, NothingRunning
from rolecall.models.hosted import commanded
from rolecall.models.model import Model
from rolecall.models.registry import open_model
from rolecall.runtime import process_name
from rolecall.serving.directory import Directory
from rolecall.serving.server import ModelServer
from rolecall.serving.serving import Serving
from rolecall.serving.strays import Stray, end_stray, find_strays, forget_dead
from rolecall.session import Session

HEAD = ("model", "state", "slots", "in flight", "memory", "up", "idle", "where")
LEAVE_SECONDS = 15.0


async def show(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """A line for each model server, whoever runs it, or with ``as_json`` an object without its key."""
    async with visiting(app_dir) as session:
        servers = await Directory(session.server).servers()
    if as_json:
        for one in servers:
            shown = msgspec.structs.replace(one, key="")
            print_lines(console, [msgspec.json.encode(shown).decode()])
    elif servers:
        print_table(console, HEAD, [_row(one) for one in servers], right=(2, 3, 4, 5, 6))
    else:
        print_lines(console, ["no model server is running; `rolecall models load NAME` starts one"])
    return 0


async def load(app_dir: Path | None, name: str, console: Console) -> int:
    """Load a model of this machine, with its progress, and keep it loaded until it is unloaded."""
    name = _full(name)
    async with visiting(app_dir) as session, _serving(session) as serving:
        await _check_use(session, name)
        began, model = time.monotonic(), _opened(session.application, name, serving)
        try:
            await warm_with_bar(console, name, model)
        finally:
            await model.aclose()
        for one in _of(await serving.directory.servers(machine=serving.machine), name):
            await serving.directory.pin(one.id, True)
            print_lines(console, [f"{name} is loaded after {time.monotonic() - began:.1f} s: {_size(one)}, "
                                  f"{one.slots} slots, pid {one.pid}"])  # fmt: skip
    return 0


async def unload(app_dir: Path | None, name: str, console: Console, *, force: bool) -> int:
    """Have a model leave memory, on every machine; with ``force`` while it answers too. Exit status 1 if one stays."""
    name = _full(name)
    async with visiting(app_dir) as session:
        directory = Directory(session.server)
        servers = _of(await directory.servers(), name)
        if not servers:
            raise ConfigError(f"{name} is not loaded; `rolecall models ps` shows what is")
        with console.status(Text(f"{name}: leaving")):
            left = await asyncio.gather(*(_unloaded(directory, one, force) for one in servers))
        print_lines(console, left)
    return 0 if all(line.endswith("is unloaded") for line in left) else 1


async def clean(app_dir: Path | None, console: Console) -> int:
    """Show and end processes of model servers that nobody knows of, and forget servers whose processes are gone. Exit
    status 1 if one would not end."""
    if importlib.util.find_spec("psutil") is None:
        raise MissingExtra("local", "rolecall models clean")
    async with visiting(app_dir) as session:
        directory = Directory(session.server)
        dead = await forget_dead(directory)
        strays = await find_strays(directory, _logs(session))
        rows = [(one.pid, _mb(one.ram), _time(one.age), one.command[:80]) for one in strays]
        if rows:
            print_table(console, ("pid", "memory", "up", "command"), rows, right=(0, 1, 2))
        ended = await asyncio.gather(*(_ended(one) for one in strays))
        print_lines(console, [f"{one.model}: pid {one.pid} was gone, forgotten" for one in dead])
        print_lines(console, ended or ["no strays"])
    return 0 if all(line.endswith("ended") for line in ended) else 1


async def _check_use(session: Session, name: str) -> None:
    """Raise where nothing would use the model: its server leaves when nobody needs it."""
    ours = session.application.commands
    named = [one for one in session.application.model_names if one.endswith("@local") or one in ours]
    if name not in named:
        known = ", ".join(named) or "none of this machine"
        raise ConfigError(f"no role uses {name}: config.py and GEN_MODEL name {known}")
    if not await registry.processes(session.bus):
        raise NothingRunning("no process is running that would use it: `rolecall up` starts one, and loads its models")


def _opened(application: Application, name: str, serving: Serving) -> Model:
    if command := application.commands.get(name):
        return commanded(name, command, application.settings, serving)
    return open_model(name, application.settings, application.state_dir, serving)


@asynccontextmanager
async def _serving(session: Session) -> AsyncIterator[Serving]:
    serving = Serving(session.server, process_name(), _logs(session), limit=session.application.settings.local_ram)
    try:
        yield serving
    finally:
        await serving.aclose()


def _logs(session: Session) -> Path:
    return session.application.state_dir / "models"


def _full(name: str) -> str:
    """``smollm2`` for ``smollm2@local``."""
    return name if "@" in name else f"{name}@local"


def _of(servers: Sequence[ModelServer], name: str) -> list[ModelServer]:
    return [one for one in servers if one.owned and one.model == name]


async def _unloaded(directory: Directory, server: ModelServer, force: bool) -> str:
    word, where = await directory.stop(server.id, busy=force), f"{server.model} (pid {server.pid} at {server.host})"
    if word == "busy":
        return f"{where} is answering: try again, or cut its answers off with --force"
    give_up = time.monotonic() + LEAVE_SECONDS
    while any(one.id == server.id for one in await directory.servers()):
        if time.monotonic() > give_up:
            return f"{where} was told to leave and has not yet"
        await asyncio.sleep(0.05)
    return f"{where} is unloaded"


async def _ended(stray: Stray) -> str:
    return f"pid {stray.pid} ended" if await end_stray(stray) else f"pid {stray.pid} does not end"


def _row(server: ModelServer) -> tuple[object, ...]:
    state = "pinned" if server.pinned and server.state == "ready" else server.state
    where = f"pid {server.pid} at {server.host}" if server.owned else server.url
    up = _time(server.age / 1000) if server.owned else ""
    idle = "" if server.in_flight or not server.owned else _time(server.idle / 1000)
    memory = _size(server) if server.owned else ""
    problem = f", {server.why}" if server.why else ""
    return server.model, state, server.slots, server.in_flight, memory, up, idle, f"{where}{problem}"


def _size(server: ModelServer) -> str:
    return _mb(server.ram) if server.measured else f"about {_mb(server.ram)}"


def _mb(megabytes: int) -> str:
    return f"{megabytes} MB"


def _time(seconds: float) -> str:
    minutes, hours = divmod(round(seconds), 60), round(seconds) // 3600
    if hours:
        return f"{hours}:{minutes[0] % 60:02} h"
    return f"{minutes[0]}:{minutes[1]:02} min" if minutes[0] else f"{minutes[1]} s"
