"""Keeps one engine: its place in Redis by a beat, its health by a look, and ends it when it is not needed any more."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from rolecall.errors import ServerError
from rolecall.redis import keys
from rolecall.redis.server import RedisServer
from rolecall.serving.directory import Directory, Pulse
from rolecall.serving.process import birth_of, memory_of, ports_of
from rolecall.serving.spec import WAYS_OUT, ModelServer, Spec

logger = logging.getLogger(__name__)
BEAT_SECONDS = 0.5
ANSWER_SECONDS = 2.0
"""How long Redis may take for the answer to a beat."""
ALONE_SECONDS = 2.0
"""How long an engine stays that nobody needs: by then a server that lost its data has been told again who does."""
AWAY_SECONDS = 10.0
"""How long an engine stays while Redis is away."""
LOOK_SECONDS = 5.0
"""How often its memory and health are looked at; it may take as long to answer."""
LOOKS = 4
"""Looks in a row without any answer after which an engine is taken to hang."""
STOP_SECONDS = 10.0
"""How long an engine may take to end before it is killed."""
TAIL_BYTES = 64_000


class Orders(msgspec.Struct, frozen=True):
    """What a host is told: its server's place, what to serve, the Redis server's address, the file it may write to, and
    the prefix of all keys."""

    server: ModelServer
    spec: Spec
    redis: str
    log: str
    prefix: str = ""
    """A process of a version before has none to tell."""


async def keep(raw: bytes, engine: subprocess.Popen[bytes] | OSError, port: int) -> None:
    """Keep ``engine`` until it ends or has to; then it is gone, and its place is free."""
    orders = msgspec.json.decode(raw, type=Orders)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s host %(process)d: %(message)s")
    keys.use(orders.prefix)
    redis = RedisServer(orders.redis, name=f"model {orders.spec.model}"[:40].replace(" ", "-"), patience=0)
    try:
        if isinstance(engine, OSError):
            why = f"{orders.spec.model}: {orders.spec.command[0]} cannot be run: {engine.strerror}"
            await _give_place_up(Directory(redis), orders.server.id, why)
        else:
            await Keeper(orders, engine, port, Directory(redis)).run()
    finally:
        await redis.aclose()


class Keeper:
    """The life of one engine, ``child``; ``port`` is the one it was told to take, 0 if it chooses."""

    def __init__(self, orders: Orders, child: subprocess.Popen[bytes], port: int, directory: Directory) -> None:
        self._orders = orders
        self._child = child
        self._port = port
        self._directory = directory
        self._leave = asyncio.Event()
        self._news = asyncio.Event()
        self._silent_looks = 0
        pids = {"pid": child.pid, "birth": birth_of(child.pid), "host_pid": os.getpid()}
        self._now = msgspec.structs.replace(orders.server, **pids, host_birth=birth_of(os.getpid()))

    @property
    def ready(self) -> bool:
        """Whether the engine answers."""
        return self._now.state == "ready"

    async def run(self) -> None:
        """Until the engine ends, or nobody needs it, or another has its place, or a signal says so."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._leave.set)
        exited = asyncio.create_task(asyncio.to_thread(self._child.wait), name="engine")
        parts = [
            exited,
            asyncio.create_task(self._leave.wait(), name="leave"),
            asyncio.create_task(self._beat(), name="beat"),
            asyncio.create_task(self._look(), name="look"),
        ]
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        died = exited.done()
        for part in parts[1:]:
            part.cancel()
        await asyncio.wait(parts[1:])
        why = ""
        if died and not self.ready:
            why = why_not(self._orders.spec.model, self._child.returncode, Path(self._orders.log))
        await self._ended(exited)
        logger.info("engine %d has ended: %s", self._child.pid, why or ("it died" if died else "not needed"))
        await _give_place_up(self._directory, self._now.id, why)

    # ── its place ───────────────────────────────────────────────────────────────────────────────

    async def _beat(self) -> None:
        """Returns when the engine has to go."""
        heard = needed = time.monotonic()
        # Who started it spoke with Redis a moment ago: if it is not there any more, it was ended since.
        patience = ANSWER_SECONDS
        while True:
            self._news.clear()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    pulse = await self._directory.beat(self._now, again="alone" if self.ready else "no")
            except (ServerError, TimeoutError) as error:
                logger.warning("Redis is away: %s", error)
                if time.monotonic() - heard > patience:
                    return
            else:
                heard, patience = time.monotonic(), AWAY_SECONDS
                needed = heard if pulse.users else needed
                if await self._is_over(pulse, heard - needed):
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._news.wait()

    async def _is_over(self, pulse: Pulse, alone: float) -> bool:
        if not pulse.known or (pulse.state == "stopping" and not pulse.in_flight):
            return True
        if alone > ALONE_SECONDS:
            return await self._stopped(busy=True)
        idle = self._orders.spec.idle
        if self.ready and idle and pulse.idle > idle and not pulse.in_flight and not pulse.pinned:
            return await self._stopped(busy=False)
        return False

    async def _stopped(self, *, busy: bool) -> bool:
        """Whether it may go: a call that came just now keeps one that is merely idle."""
        with suppress(ServerError, TimeoutError):
            return await self._directory.stop(self._now.id, busy=busy) != "busy"
        return False

    # ── the engine ──────────────────────────────────────────────────────────────────────────────

    async def _look(self) -> None:
        """Say when the engine is ready, then see to its memory and health. Returns when it hangs."""
        url = await self._address()
        self._change(state="ready", url=url)
        logger.info("ready at %s", url)
        self._change(**await self._measured())
        while self._silent_looks < LOOKS:
            await asyncio.sleep(LOOK_SECONDS)
            answered = await asyncio.to_thread(_status, f"{url}/health", "")
            self._silent_looks = 0 if answered else self._silent_looks + 1
            self._change(**await self._measured())
        logger.warning("the engine hangs: no answer to %d probes", LOOKS)

    async def _address(self) -> str:
        if self._child.stdout:
            line = await asyncio.to_thread(self._child.stdout.readline)
            if not line:  # it is on its way out
                await asyncio.Event().wait()
            return str(msgspec.json.decode(line)["url"])
        while True:
            for port in await asyncio.to_thread(ports_of, self._child.pid):
                url = f"http://127.0.0.1:{port}"
                if self._port in (0, port) and await asyncio.to_thread(_serves, url, self._now.key):
                    return url
            await asyncio.sleep(0.1)

    async def _measured(self) -> dict[str, int | bool]:
        ram = await asyncio.to_thread(memory_of, os.getpid())
        return {"ram": ram, "measured": True} if ram else {}

    def _change(self, **now: object) -> None:
        self._now = msgspec.structs.replace(self._now, **now)
        self._news.set()

    async def _ended(self, exited: asyncio.Task[int]) -> None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.shield(exited)
                    return


async def _give_place_up(directory: Directory, server: str, why: str) -> None:
    with suppress(ServerError, TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            await directory.end(server, why)


def _serves(url: str, key: str) -> bool:
    """Whether an OpenAI API is there and ready."""
    health = _status(f"{url}/health", key)
    if health in (404, 405):
        return 200 <= _status(f"{url}/v1/models", key) < 500
    return health == 200


def _status(url: str, key: str) -> int:
    """The HTTP status of a GET; 0 where nothing answers."""
    import urllib.error
    import urllib.request

    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        # Past any proxy of the environment: it is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=LOOK_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return 0


def why_not(model: str, code: int, log: Path) -> str:
    """What its exit status and the log of the engine say."""
    if code == -signal.SIGILL:
        return f"{model}: this processor lacks what the model engine needs (AVX2 on x86-64); {WAYS_OUT}"
    if code < 0:
        return f"{model}: the model engine was killed while loading ({signal.Signals(-code).name})"
    reason = _reason(_tail(log).splitlines())
    ways_out = f"; {WAYS_OUT}" if reason.startswith("xllamacpp") else ""
    return f"{model} cannot be loaded: {reason} (all of it in {log}){ways_out}"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _reason(lines: list[str]) -> str:
    """The first line llama.cpp marks as an error, else the last words."""
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    said = errors or [line for line in reversed(lines) if line.strip()] or ["it ended without a word"]
    return said[0].strip()[:300]
