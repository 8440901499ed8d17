"""``python -m bench.growth``: what finished turns leave behind, and whether turns cost more once much is there.

Prints the bytes that a finished conversation of one turn keeps, by key, and the server CPU of a turn on three servers:
an empty one, one that knows many conversations, and one whose log stream is at its cap because no scribe has run
for hours. Exit status 1 with ``--check`` when a bar is missed. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.app import FILLER
from bench.bus import FULL, LONGEST_SECONDS, running
from bench.loop import on_fastest_loop
from bench.steps import server_cpu
from rolecall import Envelope
from rolecall.bus.admission import admit
from rolecall.redis.server import RedisServer, Server, connected
from rolecall.stats import MAX_RECORDS
from rolecall.worker.runtime import Runtime
from tests.valkey import ValkeyProcess

KINDS = {
    "e": "events", "t": "result", "h": "history", "c": "conversation", "k": "idempotency key", "p": "preferences",
    "j": "journal", "m": "mailbox",
}  # fmt: skip
KEPT_BAR, GROWTH_BAR = 3_700, 1.10
BATCH = 1_000
FILL = """
local entries = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 100)
for n = 1, tonumber(ARGV[1]) do redis.call('XADD', KEYS[1], '*', unpack(entries[n % #entries + 1][2])) end
"""
"""Appends copies of a log stream's own entries."""


@dataclass
class State:
    """A server, what it has, and the server CPU of a turn there in µs, by round."""

    name: str
    url: str
    found: list[float] = field(default_factory=list)

    def ratio(self, other: State) -> float:
        """The median over the rounds of what a turn costs here beside what it costs there."""
        return statistics.median(here / there for here, there in zip(self.found, other.found, strict=True))


@contextmanager
def serving() -> Iterator[str]:
    """A server that writes nothing to disk."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        try:
            yield process.url
        finally:
            process.kill()


async def bytes_kept(url: str, turns: int) -> Counter[str]:
    """Bytes of server memory per conversation after so many have finished their one turn, by kind of key."""
    async with running(url, FULL) as runtime:
        await finish(runtime, "kept", turns)
        return await bytes_of(runtime.bus.server, turns)


async def bytes_of(server: Server, turns: int) -> Counter[str]:
    """Bytes per conversation of those that ``bytes_kept`` has made."""
    kept = Counter[str]()
    for key in await keys_of(server, "bench:kept-"):
        kind = key.split(b":")[2].decode()
        kept[KINDS.get(kind, kind)] += await server.call("MEMORY", "USAGE", key) or 0
    return Counter({kind: size // turns for kind, size in kept.items()})


async def bytes_left(url: str, turns: int) -> Counter[str]:
    """The same, once the events that wait for followers to come back have expired."""
    async with connected(url) as server, asyncio.timeout(LONGEST_SECONDS):
        while (kept := await bytes_of(server, turns))["events"]:
            await asyncio.sleep(1)
        return kept


def shown(kept: Counter[str]) -> str:
    """The sum and its parts."""
    return f"{kept.total():,} bytes: " + ", ".join(f"{kind} {size:,}" for kind, size in kept.most_common())


async def keys_of(server: Server, conversations: str) -> list[bytes]:
    """The keys of the conversations whose names begin so."""
    keys, cursor = list[bytes](), b"0"
    while True:
        cursor, found = await server.call("SCAN", cursor, "MATCH", f"*{conversations}*", "COUNT", 1000)
        keys += found
        if cursor == b"0":
            return keys


async def finish(runtime: Runtime, name: str, turns: int) -> None:
    """Admit one turn each of so many new conversations and wait until the last has ended."""
    envelopes = (
        Envelope(conversation=f"bench:{name}-{n}", payload={"text": FILLER, "to": "samplellm"}) for n in range(turns)
    )
    async with asyncio.timeout(LONGEST_SECONDS):
        await asyncio.gather(*(admit(runtime.bus, envelope) for envelope in envelopes))
        while await runtime.bus.server.call("ZCARD", runtime.bus.shards[0].active):
            await asyncio.sleep(0.005)


async def know(url: str, conversations: int) -> None:
    """Make the server know so many conversations, each with a finished turn whose events have expired."""
    async with running(url, FULL) as runtime:
        await finish(runtime, "first", 1)
        server = runtime.bus.server
        await server.call("DEL", runtime.bus.shards[0].events("bench:first-0"))
        kept = [(key, *await copied(server, key)) for key in await keys_of(server, "bench:first-0")]
        for first in range(0, conversations, BATCH):
            copies = (
                server.send("RESTORE", key.replace(b"bench:first-0", b"known:%d" % number), left, dumped)
                for number in range(first, min(conversations, first + BATCH))
                for key, dumped, left in kept
            )
            await asyncio.gather(*copies)


async def copied(server: Server, key: bytes) -> tuple[bytes, int]:
    """A key's value and the ms that it has left, as RESTORE takes them."""
    return await server.call("DUMP", key), max(0, await server.call("PTTL", key))


async def fill_log(url: str) -> None:
    """Bring the log stream to its cap."""
    async with running(url, FULL) as runtime:
        await finish(runtime, "first", 100)
        server, log = runtime.bus.server, runtime.bus.shards[0].log
        while (missing := MAX_RECORDS - await server.call("XLEN", log)) > 0:
            await server.call("EVAL", FILL, 1, log, min(missing, BATCH))
        await server.call("SCRIPT", "FLUSH", "SYNC")  # it leaves much in Lua's memory


async def turn_cost(state: State, number: int, turns: int, *, capped: bool) -> float:
    """Server CPU in µs of each of so many turns of new conversations."""
    async with running(state.url, FULL, emptied=False) as runtime:
        server, shard = runtime.bus.server, runtime.bus.shards[0]
        await finish(runtime, f"warm-{number}", turns // 10)
        if not capped:
            await server.call("XTRIM", shard.log, "MAXLEN", 0)
        assert isinstance(server, RedisServer)
        before = await server_cpu(server)
        await finish(runtime, f"cost-{number}", turns)
        return (await server_cpu(server) - before) / turns * 1_000_000


async def measure(options: argparse.Namespace) -> bool:
    """Print every figure; whether every bar is met."""
    with ExitStack() as servers:
        urls = [servers.enter_context(serving()) for _ in range(3)]
        print(f"a conversation of one turn that has just ended: {shown(await bytes_kept(urls[0], options.turns))}")
        states = [
            State("an empty server", urls[0]),
            State(f"{options.conversations:,} known conversations", urls[1]),
            State(f"a log stream at its cap of {MAX_RECORDS:,} entries", urls[2]),
        ]
        await know(urls[1], options.conversations)
        await fill_log(urls[2])
        for number in range(options.rounds):
            for state in states:
                cost = await turn_cost(state, number, options.turns, capped=state is states[-1])
                state.found.append(cost)
        left = await bytes_left(urls[0], options.turns)
        print(f"… and a minute later: {shown(left)} (bar {KEPT_BAR:,})")
    met = left.total() <= KEPT_BAR
    for state in states:
        met &= (ratio := state.ratio(states[0])) <= GROWTH_BAR
        told = f"{min(state.found):.0f} µs of server CPU a turn, median {statistics.median(state.found):.0f}"
        print(f"{state.name:45} {told}; × {ratio:.2f}")
    return met


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--turns", type=int, default=1_000, help="turns of each measurement")
    parser.add_argument("--conversations", type=int, default=100_000, help="known conversations")
    parser.add_argument("--rounds", type=int, default=15, help="how often the servers take turns")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    met = on_fastest_loop(measure(options))
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
