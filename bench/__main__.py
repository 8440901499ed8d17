"""``python -m bench``: the bus beside a raw redis-py loop, interleaved in one run on one server, with both ways of
writing to disk. Takes about a minute. Exit status 1 with ``--check`` when a bar is missed. With ``--json``, the last
line is one JSON object with the figures."""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.bus import at_rest, first_pieces, full_turns, one_role_turns, plain_messages, short_waits, two_hops
from bench.loop import on_fastest_loop
from bench.raw import fsync_ms, raw_messages, raw_two_hops
from rolecall.redis.embedded import EmbeddedServer
from rolecall.worker.runtime import GC_THRESHOLD

MODES = ("everysec", "always")
RAW, PLAIN, FULL, HOPS, WAITS = 20_000, 100, 2_000, 300, 200
IDLE_SECONDS = 8.0
FIGURES = ("raw", "plain", "full", "own", "shared", "raw50", "raw99", "p50", "p99", "piece", "waits", "fsync")
RAW_ROW, PLAIN_ROW, FULL_ROW = "raw redis-py loop, messages/s", "plain messages/s", "full turns/s"
RAW_P50_ROW, RAW_P99_ROW = "raw two hops, p50 ms", "raw two hops, p99 ms"
P50_ROW, P99_ROW = "two hops, p50 ms", "two hops, p99 ms"
IDLE_ROWS = {
    "commands_per_second": "commands/s at rest, 10 roles × 5",
    "connections": "connections, 10 roles × 5",
}


@dataclass(frozen=True)
class Row:
    """A figure, how it is printed, and the bar it has to meet."""

    name: str
    values: dict[str, float]
    show: str = "{:,.0f}"
    least: float | None = None
    most: float | None = None

    @property
    def bar(self) -> str:
        """The bar in words; empty without one."""
        words = {">=": self.least, "<=": self.most}
        return " and ".join(f"{sign} {limit:g}" for sign, limit in words.items() if limit is not None)

    @property
    def met(self) -> bool:
        """Whether every value meets the bar."""
        least, most = self.least or 0.0, math.inf if self.most is None else self.most
        return all(least <= value <= most for value in self.values.values())


async def measure(rounds: int) -> list[Row]:
    """Everything, as rows of the table."""
    modes = {mode: await _measure_mode(mode, rounds) for mode in MODES}

    def of(name: str) -> dict[str, float]:
        return {mode: figures[name] for mode, figures in modes.items()}

    def ratio(name: str, to: str, by: float = 1.0) -> dict[str, float]:
        return {mode: by * figures[name] / figures[to] for mode, figures in modes.items()}

    return [
        Row(RAW_ROW, of("raw")),
        Row(PLAIN_ROW, of("plain")),
        Row("  as a share of raw, %", ratio("plain", "raw", 100), "{:.1f}", least=25),
        Row(FULL_ROW, of("full")),
        Row("  as a share of raw, %", ratio("full", "raw", 100), "{:.1f}", least=6.2),
        Row("one-role turns/s", of("own")),
        Row("  as a share of raw, %", ratio("own", "raw", 100), "{:.1f}", least=14),
        Row("one-role turns/s in 64 conversations", of("shared")),
        Row("  as a share of raw, %", ratio("shared", "raw", 100), "{:.1f}", least=12),
        Row(RAW_P50_ROW, of("raw50"), "{:.2f}"),
        Row(RAW_P99_ROW, of("raw99"), "{:.2f}"),
        Row(P50_ROW, of("p50"), "{:.2f}"),
        Row("  times raw", ratio("p50", "raw50"), "{:.1f}", most=1.7),
        Row(P99_ROW, of("p99"), "{:.2f}"),
        Row("  times raw", ratio("p99", "raw99"), "{:.1f}", most=2),
        Row("first piece of an answer, p50 ms", of("piece"), "{:.2f}", most=3),
        Row("200 turns of 0.1 s on 50 instances, s", of("waits"), "{:.2f}", most=0.42),
        Row("fdatasync of 4 kB, p50 ms", of("fsync"), "{:.2f}"),
        *await _measure_rest(),
    ]


async def _measure_mode(mode: str, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    async with serving(mode) as (url, directory):
        for _ in range(rounds):
            found["fsync"].append(fsync_ms(directory))
            found["raw"].append(await raw_messages(url, RAW))
            found["plain"].append(await plain_messages(url, PLAIN))
            found["full"].append(await full_turns(url, FULL))
            found["own"].append(await one_role_turns(url, FULL, FULL))
            found["shared"].append(await one_role_turns(url, FULL, 64))
            bare = await raw_two_hops(url, HOPS)
            found["raw50"].append(statistics.median(bare))
            found["raw99"].append(bare[len(bare) * 99 // 100])
            took = await two_hops(url, HOPS)
            found["p50"].append(statistics.median(took))
            found["p99"].append(took[len(took) * 99 // 100])
            found["piece"].append(statistics.median(await first_pieces(url, HOPS // 3)))
            found["waits"].append(await short_waits(url, WAITS))
    return {name: statistics.median(values) for name, values in found.items()}


async def _measure_rest() -> list[Row]:
    async with serving("everysec") as (url, directory):
        idle, few = await at_rest(url, directory / "log1", 1, IDLE_SECONDS)
        idle16, many = await at_rest(url, directory / "log16", 16, IDLE_SECONDS)
    return [
        Row(IDLE_ROWS["commands_per_second"], {"everysec": idle}, "{:.1f}", most=4),
        Row("  the same with 16 shards", {"everysec": idle16}, "{:.1f}", most=10),
        Row(IDLE_ROWS["connections"], {"everysec": few}, most=5),
        Row("  the same with 16 shards", {"everysec": many}, most=30),
    ]


@asynccontextmanager
async def serving(mode: str) -> AsyncIterator[tuple[str, Path]]:
    directory = Path(tempfile.mkdtemp(prefix="bench"))
    server = await EmbeddedServer.join(directory / "state", appendfsync="always" if mode == "always" else "everysec")
    try:
        yield server.url, directory
    finally:
        await server.leave()
        shutil.rmtree(directory, ignore_errors=True)


def _print(rows: list[Row]) -> bool:
    """The table; whether every bar is met."""
    print(f"{'':38}{'everysec':>12}{'always':>12}   bar")
    passed = True
    for row in rows:
        passed &= row.met
        cells = "".join(f"{row.show.format(row.values[mode]) if mode in row.values else '':>12}" for mode in MODES)
        print(f"{row.name:38}{cells}   {row.bar}{'' if row.met else '  missed'}")
    return passed


def as_json(rows: list[Row]) -> str:
    """The figures by mode, and those of an idle deployment."""
    by_name = {row.name.strip(): row.values for row in rows}
    result: dict[str, dict[str, float]] = {}
    for mode in MODES:
        raw, raw50, raw99 = (by_name[name][mode] for name in (RAW_ROW, RAW_P50_ROW, RAW_P99_ROW))
        plain, full = by_name[PLAIN_ROW][mode], by_name[FULL_ROW][mode]
        p50, p99 = by_name[P50_ROW][mode], by_name[P99_ROW][mode]
        result[mode] = {
            "raw": raw, "plain": plain, "plain_share": plain / raw, "full_turns": full, "full_turns_of_raw": full / raw,
            "two_hops_p50_ms": p50, "two_hops_p50_of_raw": p50 / raw50, "two_hops_p99_ms": p99,
            "two_hops_p99_of_raw": p99 / raw99,
        }  # fmt: skip
    result["idle"] = {key: by_name[name][MODES[0]] for key, name in IDLE_ROWS.items()}
    return json.dumps({mode: {key: round(value, 4) for key, value in row.items()} for mode, row in result.items()})


def both_sides() -> str:
    """What both sides run on: the event loop of each process, and its garbage collector."""
    loop = "asyncio"
    with suppress(PackageNotFoundError):
        loop = f"uvloop {version('uvloop')}"
    return (
        f"{loop} on both sides; gc: {gc.get_threshold()[0]} for the raw loop, {GC_THRESHOLD[0]} and frozen for workers"
    )


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    options = parser.parse_args()
    print(both_sides())
    rows = on_fastest_loop(measure(options.rounds))
    passed = _print(rows)
    if options.json:
        print(as_json(rows))
    return int(options.check and not passed)


if __name__ == "__main__":
    sys.exit(main())
