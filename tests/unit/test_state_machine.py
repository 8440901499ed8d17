"""Every verb of the bus in any order by any process, right or wrong: the promises of the design hold after each step.

The negative controls show that the checks would notice: each breaks one line of one script, and has to be caught.
`make proof` walks twenty times as long, and breaks the lines too that are seldom come by (``ROLECALL_WALKS``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from rolecall.errors import ServerError
from rolecall.redis.pipeline import Arg
from rolecall.redis.scripts import script
from rolecall.redis.server import RedisServer
from tests.bus_machine import Focus, machine_on

WALKS = int(os.environ.get("ROLECALL_WALKS", "100"))
LONG = WALKS >= 1000
WALK = settings(
    max_examples=WALKS,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
SHORT = settings(WALK, max_examples=500, phases=(Phase.generate,))


class Broken:
    """A server on which one script has a line replaced."""

    def __init__(self, server: RedisServer, name: str, line: str, by: str) -> None:
        self._server = server
        self._name = name
        assert script(name).body.count(line.encode()) == 1, f"{name} has no such line"
        self._body = script(name).body.replace(line.encode(), by.encode())

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        return self._server.send(*args)

    async def call(self, *args: Arg) -> Any:
        return await self._server.call(*args)

    async def fetch(self, *args: Arg) -> Any:
        return await self.call(*args)

    async def run(self, name: str, keys: Sequence[Arg], args: Sequence[Arg]) -> Any:
        if name == self._name:
            return await self._server.call("EVAL", self._body, len(keys), *keys, *args)
        return await self._server.run(name, keys, args)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def walked(loop: asyncio.AbstractEventLoop, server_url: str) -> Iterator[RedisServer]:
    server = RedisServer(server_url)
    yield server
    loop.run_until_complete(server.aclose())


def test_the_bus_keeps_its_promises_in_whatever_order(loop: asyncio.AbstractEventLoop, walked: RedisServer) -> None:
    run_state_machine_as_test(machine_on(loop, walked, walked), settings=WALK)


WORK = [
    ("complete", "if not own() then return 'FENCED' end", ""),
    ("hop", "if not own() then return 'FENCED' end", ""),
    ("complete", "if not CONTROL then release() end", ""),
    ("complete", "\ndrop()\n", "\n"),
    ("bury", "  leave(user)\n", ""),
    ("hop", "moved(stream .. '|' .. id)", ""),
    ("defer", "moved('z')", ""),
    ("handback", "if row.err or #row == 0 then return 'FENCED' end", ""),
    ("handback", "  redis.call('HSET', KEYS[2], 'at', KEYS[1] .. '|' .. id)\n", ""),
    ("promote", "redis.call('ZREM', KEYS[1], ARGV[1])\n", ""),
    ("cancel", "    redis.pcall('XACK', SRC, 'g', ID)\n    redis.call('XDEL', SRC, ID)\n", ""),
    ("stop", "    redis.call('XDEL', SRC, ID)\n", ""),
    ("admit", "waiting - ended >= tonumber(ARGV[15])", "waiting - ended > tonumber(ARGV[15])"),
    ("take", "(deliveries ~= RETRIES or last)", "true"),
    ("take", "'COUNT', free,", "'COUNT', 4,"),
]
FRONTS = [
    ("admit", "if job[1] == USER and (COLLECT", "if (COLLECT"),
    ("admit", "  redis.call('HSET', JOURNAL, turn .. ':x', parts)\n", ""),
    ("admit", "    redis.call('ZADD', DEFERRED, job[4], NAME)\n", ""),
    ("complete", "if tonumber(job[4] or 0) > NOW then", "if false then"),
    ("complete", ",\n    turn .. ':g', turn .. ':d')", ")"),
    ("interrupt", "  if not evict() then return { 'MOVED', '', 0, NOW, '' } end\n", ""),
    ("interrupt", "redis.call('HGET', JOURNAL, TURN .. ':u') == USER", "true"),
    ("interrupt", "  release()\n", ""),
    ("edit", "if not redis.call('LPOS', KEYS[7], turn) and not", "if not"),
    ("edit", "if tonumber(ARGV[6]) <= (tonumber(edited) or -1) then", "if false then"),
    ("edit", "if part ~= '' then", "if false then"),
    ("notify", "if known then return", "if false then return"),
]
SELDOM = [
    ("work", "fallback", "if redis.call('EXISTS', KEYS[4]) == 1 then return 'ALIVE' end\n", ""),
    ("fronts", "promote", "envelope == job[1] and job[2] or ''", "''"),
]


@pytest.mark.parametrize(
    ("focus", "name", "line", "by"),
    [*(("work", *broken) for broken in WORK), *(("fronts", *broken) for broken in FRONTS), *(SELDOM if LONG else ())],
)
def test_a_broken_script_is_noticed(
    loop: asyncio.AbstractEventLoop, walked: RedisServer, focus: Focus, name: str, line: str, by: str
) -> None:
    broken = Broken(walked, name, line, by)
    with pytest.raises((AssertionError, ServerError)):
        run_state_machine_as_test(machine_on(loop, walked, broken, focus), settings=SHORT)
