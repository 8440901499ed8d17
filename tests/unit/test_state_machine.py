"""Every verb of the bus in any order by any process, right or wrong: the promises of the design hold after each step.

The negative controls show that the checks would notice: each breaks one line of one script, and has to be caught.
`make proof` runs seven times as many walks, and also breaks lines that walks rarely reach (``ROLECALL_WALKS``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from rolecall.errors import ServerError
from rolecall.redis.scripts import Arg, Block, Script, _placed, loaded_scripts
from rolecall.redis.server import RedisServer
from tests.bus.machine import Focus, machine_on

WALKS = int(os.environ.get("ROLECALL_WALKS", "300"))
LONG = WALKS >= 1000
PARTS = 5
"""The walks are divided, so that several processes can walk."""
WALK = settings(
    max_examples=WALKS // PARTS,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
SHORT = settings(WALK, max_examples=500, phases=(Phase.generate,))


def script_named(name: str) -> Script:
    """The script of the bus that is called ``name``."""
    return next(one for one in loaded_scripts() if one.name.startswith("bus/") and one.name.endswith(f"/{name}.lua"))


class Broken:
    """A server on which one script has a line replaced."""

    def __init__(self, server: RedisServer, script: Script, line: str, by: str) -> None:
        self._server = server
        self._script = script
        there, instead = (_placed(part, script.keys, script.args).encode() for part in (line, by))
        assert script.body.count(there) == 1, f"{script.name} has no such line"
        self._body = script.body.replace(there, instead)

    def send(self, *args: Arg) -> asyncio.Future[Any]:
        return self._server.send(*args)

    def start(self, script: Script, /, *blocks: Block, **values: Any) -> asyncio.Future[Any]:
        if script is self._script:
            return self.send("EVAL", self._body, *script.arguments(blocks, values))
        return self._server.start(script, *blocks, **values)

    async def call(self, *args: Arg) -> Any:
        return await self._server.call(*args)

    async def fetch(self, *args: Arg) -> Any:
        return await self.call(*args)

    async def run(self, script: Script, /, *blocks: Block, **values: Any) -> Any:
        if script is self._script:
            return await self.start(script, *blocks, **values)
        return await self._server.run(script, *blocks, **values)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def walked(loop: asyncio.AbstractEventLoop, server_url: str) -> Iterator[RedisServer]:
    server = RedisServer(server_url)
    loop.run_until_complete(server.call("CONFIG", "SET", "maxmemory", 0))  # another test may have set it
    yield server
    loop.run_until_complete(server.aclose())


@pytest.mark.parametrize("part", range(PARTS))
def test_the_bus_keeps_its_promises_in_whatever_order(
    loop: asyncio.AbstractEventLoop, walked: RedisServer, part: int
) -> None:
    run_state_machine_as_test(seed(part)(machine_on(loop, walked, walked)), settings=WALK)


# Script, line, what replaces it, and a seed whose walks come upon it soon.
WORK = [
    ("hop", "if not deliveries() then return 'FENCED' end", "", 17),
    ("complete", "\ndrop()\n", "\n", 8),
    ("bury", "  leave(user)\n", "", 7),
    ("hop", "moved(place(stream, id))", "", 20),
    ("handback", "if not count then return 'FENCED' end", "count = count or 1", 17),
    ("handback", "  redis.call('HSET', CONVERSATION, 'at', place(stream, id))\n", "", 15),
    ("cancel", "    redis.pcall('XACK', STREAM, 'g', ENTRY)\n    redis.call('XDEL', STREAM, ENTRY)\n", "", 21),
    ("stop", "    redis.call('XDEL', STREAM, ENTRY)\n", "", 4),
    ("admit", "waiting - ended >= tonumber(MAILBOX_LIMIT)", "waiting - ended > tonumber(MAILBOX_LIMIT)", 5),
    ("take", "'COUNT', free,", "'COUNT', 4,", 17),
    ("hop", "'COUNT', free,", "'COUNT', 9,", 14),
    ("complete", "at ~= place(stream, id)", "at == place(stream, id)", 10),
]
FRONTS = [
    ("admit", "if user == PRINCIPAL and (collect", "if (collect", 18),
    ("admit", "  redis.call('HSET', JOURNAL, turn .. ':x', parts)\n", "", 13),
    ("admit", "    redis.call('ZADD', DEFERRED, due, NAME)\n", "", 4),
    ("complete", "if tonumber(due or 0) > NOW then", "if false then", 11),
    ("complete", ",\n    turn .. ':g', turn .. ':d', turn .. ':s', turn .. ':c', turn .. ':p')", ")", 17),
    ("interrupt", "  if not evict() then return { 'MOVED', '', 0, NOW, '' } end\n", "", 3),
    ("interrupt", "redis.call('HGET', JOURNAL, TURN .. ':u') == PRINCIPAL", "true", 21),
    ("interrupt", "  release()\n", "", 3),
    ("edit", "if not redis.call('LPOS', MAILBOX, turn) and not", "if not", 23),
    ("edit", "if tonumber(VERSION) <= (tonumber(edited) or -1) then", "if false then", 0),
    ("notify", "if known then return", "if false then return", 2),
]
SCHEDULES = [
    ("fire", "  redis.call('ZADD', DEFERRED, FOLLOWING, member)\n", "", 15),
    ("fire", "(last ~= '' and redis.call('HEXISTS', JOURNAL, last .. ':e') == 1) or ", "", 15),
    ("remove", "  redis.call('ZREM', DEFERRED, NAME .. '\\31' .. id)\n", "", 0),
    ("complete", "    redis.call('HDEL', JOURNAL, turn .. ':t')\n", "", 14),
]
SELDOM = [
    ("work", "complete", "if not deliveries() then return 'FENCED' end", "", 0),
    ("work", "complete", "if ORDERED then release() end", "", 0),
    ("work", "defer", "moved(SLEEPING)", "", 0),
    ("work", "promote", "  redis.call('ZREM', DEFERRED, member(NAME, turn))\n", "", 0),
    ("work", "take", "(deliveries ~= most or last)", "true", 0),
    ("work", "complete", "  if calls then end_calls(turn, calls) end\n", "", 0),
    ("work", "complete", "      return wake(turn, NOW)\n", "      return\n", 0),
    ("work", "suspend", "  if finished(STEPS, group) then", "  if false then", 0),
    ("fronts", "edit", "if number ~= '' then", "if false then", 0),
    ("work", "fallback", "if redis.call('EXISTS', ALIVE) == 1 then return 'ALIVE' end\n", "", 0),
    ("fronts", "promote", "envelope == first and joined or ''", "''", 0),
]


@pytest.mark.parametrize(
    ("focus", "name", "line", "by", "first"),
    [
        *(("work", *broken) for broken in WORK),
        *(("fronts", *broken) for broken in FRONTS),
        *(("fronts", *broken) for broken in SCHEDULES),
        *(SELDOM if LONG else ()),
    ],
)
def test_a_broken_script_is_noticed(
    loop: asyncio.AbstractEventLoop, walked: RedisServer, focus: Focus, name: str, line: str, by: str, first: int
) -> None:
    broken = Broken(walked, script_named(name), line, by)
    with pytest.raises((AssertionError, ServerError)):
        run_state_machine_as_test(seed(first)(machine_on(loop, walked, broken, focus)), settings=SHORT)
