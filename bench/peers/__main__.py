"""``python -m bench.peers``: other queues on Redis beside Rolecall and a bare redis-py loop, on one server.

Every system passes 100 messages of 1 kB back and forth between two links in one worker process, 40 times each, with
acknowledgement, fed by another process; then that process sends messages one at a time over both links and waits for
each to come back. The systems take turns, for so many rounds; medians are shown. The server writes nothing to disk.

Each system is installed into an environment of its own in ``.rolecall/peers`` the first time. One that cannot be
installed or that fails is named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from rich.console import Console
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI

from bench.peers.links import PASSES
from rolecall.redis.embedded import find_binary
from rolecall.version import __version__

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
ENVIRONMENTS = REPOSITORY / ".rolecall/peers"
WIDTH = 100
"""Messages under way at a time."""
START_SECONDS, STEP_SECONDS, END_SECONDS, INSTALL_SECONDS = 30.0, 60.0, 5.0, 300.0
RAW, OURS = "redis-py loop", "Rolecall"


class PeerError(Exception):
    """Why a system is left out, in one line."""


@dataclass(frozen=True)
class Peer:
    """A system: its program, and what its environment needs; the first requirement's version is shown."""

    name: str
    program: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What runs the program in this system's environment, which is made if there is none."""
        if not self.needs:
            return [sys.executable, str(HERE / self.program)]
        place = ENVIRONMENTS / self.program.partition("_")[0]
        made = place / "made"
        node = self.program.endswith(".mjs")
        if not made.exists():
            self._install(place, node)
            made.touch()
        return ["node" if node else str(place / "bin/python"), str(HERE / self.program)]

    def _install(self, place: Path, node: bool) -> None:
        print(f"installing {self.name} …", flush=True)
        place.mkdir(parents=True, exist_ok=True)
        if node:
            steps = [["npm", "install", "--silent", "--no-audit", "--no-fund", *self.needs]]
        else:
            pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            steps = [[sys.executable, "-m", "venv", str(place)], [*pip, *self.needs, "uvloop", "hiredis", "orjson"]]
        for step in steps:
            try:
                subprocess.run(step, cwd=place, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            except FileNotFoundError:
                raise PeerError(f"{step[0]} is not installed") from None
            except subprocess.TimeoutExpired:
                raise PeerError(f"not installed within {INSTALL_SECONDS:.0f} s") from None
            except subprocess.CalledProcessError as error:
                raise PeerError((error.stderr.strip().splitlines() or ["the installation failed"])[-1]) from None

    def version(self) -> str:
        """The installed version of what is measured."""
        place = ENVIRONMENTS / self.program.partition("_")[0]
        if not self.needs:
            return __version__ if self.name == OURS else _installed(sys.executable, "redis")
        package = self.needs[0].partition("[")[0]
        if self.program.endswith(".mjs"):
            return str(json.loads((place / f"node_modules/{package}/package.json").read_text())["version"])
        return _installed(str(place / "bin/python"), package)


PEERS = (
    Peer(RAW, "raw_peer.py"),
    Peer(OURS, "rolecall_peer.py"),
    Peer("BullMQ", "bullmq_peer.mjs", ("bullmq", "ioredis")),
    Peer("FastStream", "faststream_peer.py", ("faststream[redis]",)),
    Peer("FastStream, batches", "faststream_peer.py", ("faststream[redis]",), ("batch",)),
    Peer("taskiq", "taskiq_peer.py", ("taskiq", "taskiq-redis")),
    Peer("streaq", "streaq_peer.py", ("streaq",)),
    Peer("Celery", "celery_peer.py", ("celery[redis]",)),
    Peer("arq", "arq_peer.py", ("arq",)),
    Peer("docket", "docket_peer.py", ("pydocket",)),
)


@dataclass
class Figures:
    """What was measured of one system, a value a round."""

    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


def _installed(python: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def _server() -> Iterator[str]:
    """A server of this run's own: every system reaches it over TCP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="peers") as directory:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory]
        process = subprocess.Popen([str(find_binary()), *options], stdout=subprocess.DEVNULL)
        url = f"redis://127.0.0.1:{port}/0"
        try:
            with Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 100)) as client:
                client.ping()
            yield url
        finally:
            process.terminate()
            process.wait(10)


class Program:
    """A running program of a peer."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    def tell(self, command: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    async def line(self, seconds: float) -> str:
        """Its next line. Raises PeerError when there is none in that time."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), seconds)
        except TimeoutError:
            raise PeerError(f"said nothing for {seconds:.0f} s") from None
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise PeerError(f"its process ended: {said[-1] if said else 'without a word'}")
        return line.decode().strip()


@asynccontextmanager
async def _program(command: list[str], place: Path, *arguments: str) -> Any:
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *command, *arguments, cwd=place, env=_environment(), limit=2**20,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            program = Program(process, errors)
            if (said := await program.line(START_SECONDS)) != "ready":
                raise PeerError(f"said {said!r} instead of 'ready'")
            yield program
        finally:
            await _end(process)


def _environment() -> dict[str, str]:

    return {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}"}


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), END_SECONDS)
    if process.returncode is None:
        process.kill()
        await process.wait()


async def measure(peer: Peer, url: str, seconds: float, calls: int, figures: Figures) -> None:
    """One round of one system on an emptied server. Raises PeerError."""
    command = peer.command()
    with Redis.from_url(url) as client:
        client.flushall()
    place = ENVIRONMENTS / peer.program.partition("_")[0] if peer.needs else REPOSITORY
    async with (
        _program(command, place, "work", url, str(WIDTH), *peer.arguments) as worker,
        _program(command, place, "drive", url, str(WIDTH), *peer.arguments) as driver,
    ):
        driver.tell("call 20")  # nothing is cold afterwards
        await driver.line(STEP_SECONDS)
        driver.tell(f"call {calls}")
        took = sorted(json.loads(await driver.line(STEP_SECONDS)))
        began, handled = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            driver.tell("send")
            await worker.line(STEP_SECONDS)
            handled += WIDTH * (PASSES + 1)
        figures.rates.append(handled / (time.perf_counter() - began))
    figures.p50.append(statistics.median(took))
    figures.p99.append(took[len(took) * 99 // 100])


async def run(peers: list[Peer], rounds: int, seconds: float, calls: int) -> dict[Peer, Figures]:
    """The figures of every system that could be measured; why not, of the others, is printed."""
    found: dict[Peer, Figures] = defaultdict(Figures)
    failed: set[Peer] = set()
    with _server() as url:
        for _ in range(rounds):
            for peer in peers:
                if peer in failed:
                    continue
                try:
                    await measure(peer, url, seconds, calls, found[peer])
                except PeerError as error:
                    print(f"{peer.name} is left out: {error}", flush=True)
                    failed.add(peer)
                    found.pop(peer, None)
    return found


def table(found: dict[Peer, Figures]) -> Table:
    """The figures, fastest first below the bare loop, with a bar for each rate."""
    shown = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
    for name in ("", "version", "messages/s", "", "of raw", "two links, p50 ms", "p99 ms"):
        shown.add_column(name, justify="right" if name not in ("", "version") else "left", no_wrap=True)
    rate = {peer: statistics.median(figures.rates) for peer, figures in found.items()}
    raw = next((value for peer, value in rate.items() if peer.name == RAW), 0.0)
    most = max((value for peer, value in rate.items() if peer.name != RAW), default=1.0)
    for peer in sorted(rate, key=rate.__getitem__, reverse=True):
        style = "bold green" if peer.name == OURS else ""
        bar = "" if peer.name == RAW else "█" * max(1, round(30 * rate[peer] / most))
        shown.add_row(
            peer.name, peer.version(), f"{rate[peer]:,.0f}", bar, f"{rate[peer] / raw:.1%}" if raw else "",
            f"{statistics.median(found[peer].p50):.2f}", f"{statistics.median(found[peer].p99):.2f}", style=style,
        )  # fmt: skip
    return shown


def draw(shown: Table, into: Path) -> None:
    """The table as ``peers-light.svg`` and ``peers-dark.svg``."""
    into.mkdir(parents=True, exist_ok=True)
    for name, theme in (("light", DEFAULT_TERMINAL_THEME), ("dark", DIMMED_MONOKAI)):
        console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        console.print(shown)
        console.save_svg(str(into / f"peers-{name}.svg"), title="make bench-peers", theme=theme)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each system passes messages in a round")
    parser.add_argument("--calls", type=int, default=200, help="messages that are waited for in a round")
    parser.add_argument("--only", default="", help="names of systems, separated by commas")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw peers-light.svg and peers-dark.svg there")
    parser.add_argument("--fresh", action="store_true", help="install every system again")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(ENVIRONMENTS, ignore_errors=True)
    names = tuple(name.strip().lower() for name in options.only.split(",") if name.strip())
    peers = [peer for peer in PEERS if not names or peer.name.lower().startswith(names) or peer.name == RAW]
    found = asyncio.run(run(peers, options.rounds, options.seconds, options.calls))
    shown = table(found)
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
    if options.pictures:
        draw(shown, options.pictures)


if __name__ == "__main__":
    main()
