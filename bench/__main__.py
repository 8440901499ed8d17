"""``python -m bench``: the bus beside a raw redis-py loop, interleaved in one run on one server, with both ways of
writing to disk. Takes about a minute. Exit status 1 with ``--check`` when a bar is missed."""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.bus import at_rest, full_turns, plain_messages, two_hops
from bench.loop import on_fastest_loop
from bench.raw import fsync_ms, raw_messages, raw_two_hops
from rolecall.redis.embedded import EmbeddedServer

MODES = ("everysec", "always")
RAW, PLAIN, FULL, HOPS = 20_000, 100, 2_000, 300
IDLE_SECONDS = 8.0


@dataclass(frozen=True)
class Row:
    """A figure, how it is printed, and the bar it has to meet."""

    name: str
    values: dict[str, float]
    show: str = "{:,.0f}"
    bar: str = ""
    met: Callable[[float], bool] = lambda value: True


async def measure(rounds: int) -> list[Row]:
    """Everything, as rows of the table."""
    modes = {mode: await _measure_mode(mode, rounds) for mode in MODES}

    def of(name: str) -> dict[str, float]:
        return {mode: figures[name] for mode, figures in modes.items()}

    share = {mode: 100 * figures["plain"] / figures["raw"] for mode, figures in modes.items()}
    return [
        Row("raw redis-py loop, messages/s", of("raw")),
        Row("plain messages/s", of("plain")),
        Row("  as a share of raw, %", share, "{:.1f}", ">= 15", lambda value: value >= 15),
        Row("full turns/s", of("full"), bar=">= 1,500", met=lambda value: value >= 1500),
        Row("raw two hops, p50 ms", of("raw50"), "{:.2f}"),
        Row("two hops, p50 ms", of("p50"), "{:.2f}", "<= 1.5", lambda value: value <= 1.5),
        Row("two hops, p99 ms", of("p99"), "{:.2f}"),
        Row("fdatasync of 4 kB, p50 ms", of("fsync"), "{:.2f}"),
        *await _measure_rest(),
    ]


async def _measure_mode(mode: str, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in ("raw", "plain", "full", "raw50", "p50", "p99", "fsync")}
    async with _server(mode) as (url, directory):
        for _ in range(rounds):
            found["fsync"].append(fsync_ms(directory))
            found["raw"].append(await raw_messages(url, RAW))
            found["plain"].append(await plain_messages(url, PLAIN))
            found["full"].append(await full_turns(url, FULL))
            found["raw50"].append(statistics.median(await raw_two_hops(url, HOPS)))
            took = await two_hops(url, HOPS)
            found["p50"].append(statistics.median(took))
            found["p99"].append(took[len(took) * 99 // 100])
    return {name: statistics.median(values) for name, values in found.items()}


async def _measure_rest() -> list[Row]:
    async with _server("everysec") as (url, directory):
        idle, few = await at_rest(url, directory / "log1", 1, IDLE_SECONDS)
        idle16, many = await at_rest(url, directory / "log16", 16, IDLE_SECONDS)
    return [
        Row("commands/s at rest, 10 roles × 5", {"everysec": idle}, "{:.1f}", "<= 10", lambda value: value <= 10),
        Row("  the same with 16 shards", {"everysec": idle16}, "{:.1f}"),
        Row("connections, 10 roles × 5", {"everysec": few}, bar="<= 12", met=lambda value: value <= 12),
        Row("  the same with 16 shards", {"everysec": many}, bar="<= 30", met=lambda value: value <= 30),
    ]


@asynccontextmanager
async def _server(mode: str) -> AsyncIterator[tuple[str, Path]]:
    directory = Path(tempfile.mkdtemp(prefix="bench"))
    server = await EmbeddedServer.join(directory / "state", appendfsync="always" if mode == "always" else "everysec")
    try:
        yield server.url, directory
    finally:
        await server.leave()
        shutil.rmtree(directory)


def _print(rows: list[Row]) -> bool:
    """The table; whether every bar is met."""
    print(f"{'':36}{'everysec':>12}{'always':>12}   bar")
    passed = True
    for row in rows:
        met = all(row.met(value) for value in row.values.values())
        passed &= met
        cells = "".join(f"{row.show.format(row.values[mode]) if mode in row.values else '':>12}" for mode in MODES)
        print(f"{row.name:36}{cells}   {row.bar}{'' if met else '  missed'}")
    return passed


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    passed = _print(on_fastest_loop(measure(options.rounds)))
    return int(options.check and not passed)


if __name__ == "__main__":
    sys.exit(main())
