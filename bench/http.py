"""``python -m bench.http``: how the HTTP server answers while 200 streams are open and every slot of the model's role
is busy. Starts a deployment of its own by the command line. Exit status 1 with ``--check`` when a bar is missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

ROLECALL = Path(sys.executable).with_name("rolecall")
ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
from bench.app import SampleLLMAgent
from rolecall import Agent, Config, Context, Envelope, Role


class ManagerAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("samplellm")


config = Config(roles=(Role(ManagerAgent), Role(SampleLLMAgent, instances={slots}, models=("echo@test",))))
"""
TEXT = "Tell me all about the sea, in a hundred words or so. " * 8
SETTLED_SECONDS = 3.0


@dataclass(frozen=True)
class Load:
    """What is open and busy meanwhile; ``answer_seconds`` a turn takes, in ``deltas`` pieces."""

    streams: int
    slots: int
    seconds: float
    answer_seconds: float
    deltas: int
    workers: int
    together: bool


@dataclass
class Asked:
    """One kind of request, so many a second, and how long each took in ms."""

    name: str
    method: str
    path: str
    rate: float
    bar: float
    took: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """In ms."""
        return _percentile(self.took, 99)


async def measure(load: Load) -> tuple[list[Asked], dict[str, float]]:
    """The requests with their times, and figures beside."""
    with deployment(load) as (url, pids):
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            await _until_ready(client)
            requests = _requests()
            await asyncio.gather(*(_ask(client, request) for request in requests))  # what is loaded late is loaded now
            empty = sum(map(_memory_kb, pids))
            async with open_streams(url, load.streams):
                await _until_busy(client, load)
                for request in requests:
                    request.took.clear()
                await asyncio.gather(*(_keep_asking(client, request, load.seconds) for request in requests))
                full = sum(map(_memory_kb, pids))
                figures = (await client.get("/queues")).json()
        beside = {
            "memory_per_stream_kb": (full - empty) / load.streams,
            "memory_mb": full / 1024,
            "in_flight": figures["in_flight"],
        }
        return requests, beside


def _requests() -> list[Asked]:
    return [
        Asked("GET /health/live", "GET", "/health/live", 20, 100),
        Asked("POST /chat/async", "POST", "/chat/async", 10, 150),
        Asked("GET /info", "GET", "/info", 2, 1000),
        Asked("GET /agents", "GET", "/agents", 2, 1000),
        Asked("GET /metrics", "GET", "/metrics", 0.5, 1000),
        Asked("GET /health/ready", "GET", "/health/ready", 1, 1000),
    ]


async def _keep_asking(client: httpx2.AsyncClient, request: Asked, seconds: float) -> None:
    """At its rate, whether or not the answers keep up."""
    began, asking = time.perf_counter(), list[asyncio.Task[None]]()
    for number in range(round(seconds * request.rate)):
        await asyncio.sleep(max(0.0, began + number / request.rate - time.perf_counter()))
        asking.append(asyncio.create_task(_ask(client, request), name="bench request"))
    await asyncio.gather(*asking)


async def _ask(client: httpx2.AsyncClient, request: Asked) -> None:
    began = time.perf_counter()
    try:
        answer = await client.request(
            request.method, request.path, json={"text": TEXT} if request.method == "POST" else None
        )
    except httpx2.HTTPError as error:
        request.failed.append(f"{type(error).__name__}: {error}")
        return
    request.took.append((time.perf_counter() - began) * 1000)
    if answer.status_code >= 300:
        request.failed.append(f"{answer.status_code} {answer.text[:100]}")


# ── what is measured ────────────────────────────────────────────────────────────────────────────


@contextmanager
def deployment(load: Load) -> Iterator[tuple[str, list[int]]]:
    """Its address, and the processes that serve it."""
    directory = Path(tempfile.mkdtemp(prefix="bench"))
    (directory / "config.py").write_text(CONFIG.format(slots=load.slots))
    (directory / "agents").mkdir()
    (directory / "agents/__init__.py").touch()
    log = directory / "http.log"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "ECHO_DELAY": str(load.answer_seconds), "ECHO_DELTAS": str(load.deltas),
        "USER_LIMIT": "100000", "HTTP_PORT": "0", "HTTP_STREAMS": "10000", "HTTP_REQUESTS": "10000",
        "HTTP_REQUESTS_PER_MINUTE": "1000000",
    }  # fmt: skip
    verbs = [["up", "--no-chat"]] if load.together else [["worker"], ["http", "--workers", str(load.workers)]]
    with ExitStack() as stack, log.open("w") as written:
        stack.callback(shutil.rmtree, directory)
        started = []
        for verb in verbs:
            command = [str(ROLECALL), *verb, "--app", str(directory)]
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=written, text=True
            )
            stack.callback(_end, process)
            started.append(process)
        yield _address(started[-1]), [started[0].pid] if load.together else _serving(log, load.workers)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+:\d+", line):
            return found[0]
    raise RuntimeError("the HTTP server ended before it served")


def _serving(log: Path, count: int) -> list[int]:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        lines = [json.loads(line)["text"] for line in log.read_text().splitlines() if line.endswith("}")]
        found = [int(match[1]) for line in lines if (match := re.search(r"http: pid (\d+) serves", line))]
        if len(found) >= count:
            return found
        time.sleep(0.1)
    raise RuntimeError("the processes of the HTTP server did not begin to serve")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _until_ready(client: httpx2.AsyncClient) -> None:
    async def ready() -> bool:
        return (await client.get("/health/ready")).status_code == 200

    await _until(ready, "the deployment is not ready")


async def _until_busy(client: httpx2.AsyncClient, load: Load) -> None:
    async def busy() -> bool:
        figures = (await client.get("/agents")).json()["roles"]["samplellm"]
        waiting = (await client.get("/queues")).json()["in_flight"]
        return bool(figures["busy"] == load.slots and waiting >= load.streams)

    await _until(busy, "the slots are not all busy")
    await asyncio.sleep(SETTLED_SECONDS)


async def _until(condition: Callable[[], Awaitable[bool]], problem: str) -> None:
    give_up = time.monotonic() + 60
    while not await condition():
        if time.monotonic() > give_up:
            raise RuntimeError(problem)
        await asyncio.sleep(0.2)


def _memory_kb(pid: int) -> int:
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout)


# ── the streams, in a process of their own ──────────────────────────────────────────────────────


@asynccontextmanager
async def open_streams(url: str, count: int) -> AsyncIterator[None]:
    """So many answers are being followed; whenever one is there, the next is asked for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.http", "--follow", url, "--streams", str(count),
        stdin=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def follow_many(url: str, count: int) -> None:
    """Until the input closes."""
    following = [asyncio.create_task(_follow_on(url), name="bench stream") for _ in range(count)]
    await asyncio.to_thread(sys.stdin.read)
    for task in following:
        task.cancel()
    await asyncio.wait(following)


async def _follow_on(url: str) -> None:
    place, body = urlsplit(url), json.dumps({"text": TEXT})
    head = (f"POST /chat/stream HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n")  # fmt: skip
    while True:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write((head + body).encode())
        first = await reader.readline()
        if b" 200 " not in first:
            print(f"a stream was refused: {first!r} {await reader.read(1000)!r}", file=sys.stderr)
        while await reader.read(65_536):
            pass
        writer.close()


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("inf")


def _print(load: Load, requests: list[Asked], beside: dict[str, float]) -> bool:
    """The table; whether every bar is met."""
    where = "one process with the agents" if load.together else f"{load.workers} processes"
    print(f"{load.streams} streams, {load.slots} slots busy, {load.seconds:g} s, {where}")
    print(f"{'':20}{'requests':>10}{'p50 ms':>10}{'p99 ms':>10}{'most ms':>10}{'failed':>8}   bar")
    passed = True
    for request in requests:
        met = request.p99 <= request.bar and not request.failed
        passed &= met
        figures = (_percentile(request.took, 50), request.p99, max(request.took, default=float("inf")))
        cells = "".join(f"{value:>10.1f}" for value in figures)
        bar = f"p99 <= {request.bar:g} ms{'' if met else '  missed'}"
        print(f"{request.name:20}{len(request.took):>10}{cells}{len(request.failed):>8}   {bar}")
        for problem in dict.fromkeys(request.failed[:3]):
            print(f"  {problem}")
    print(f"memory per stream {beside['memory_per_stream_kb']:.0f} kB, of the server {beside['memory_mb']:.0f} MB; "
          f"{beside['in_flight']:.0f} turns in flight at the end")  # fmt: skip
    return passed


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--answer-seconds", type=float, default=20, help="how long a turn of the model takes")
    parser.add_argument("--deltas", type=int, default=100, help="in so many pieces")
    parser.add_argument("--workers", type=int, default=4, help="processes of the HTTP server")
    parser.add_argument("--up", action="store_true", help="`rolecall up` instead: one process with the agents")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--follow", default="", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.follow:
        asyncio.run(follow_many(o.follow, o.streams))
        return 0
    load = Load(o.streams, o.slots, o.seconds, o.answer_seconds, o.deltas, o.workers, o.up)
    passed = _print(load, *asyncio.run(measure(load)))
    return int(o.check and not passed)


if __name__ == "__main__":
    sys.exit(main())
