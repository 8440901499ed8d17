"""``python -m bench.guard``: what a turn costs in counters that do not depend on the machine, beside those recorded in
``bench/baseline.json``. Warns of each that is more than 25 % higher and never fails. ``--record`` records the new ones.

Takes some seconds. On GitHub the warnings are annotations of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.__main__ import serving
from bench.app import FILLER, HOPS
from bench.bus import FULL, LONGEST_SECONDS, PLAIN, at_rest, running
from bench.loop import on_fastest_loop
from rolecall import Envelope
from rolecall.agent.role import Role
from rolecall.bus.admission import admit
from rolecall.redis.server import Server
from rolecall.worker.runtime import Runtime

BASELINE = Path(__file__).with_name("baseline.json")
TOLERANCE = 1.25
CONVERSATIONS, PLAIN_CONVERSATIONS, PROFILED = 400, 20, 200
IDLE_SECONDS = 7.0
"""Two heartbeats."""
COUNT_MODULES = "import sys; from rolecall.cli import main; sys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: \
pass\nprint(len(sys.modules))"

Figures = dict[str, float]


async def measure() -> Figures:
    """Every counter, by its name."""
    async with serving("everysec") as (url, directory):
        idle, _ = await at_rest(url, directory / "log", 1, IDLE_SECONDS)
        return {
            **{
                f"{name} per hop": value
                for name, value in (await _counted(url, PLAIN, "ping", PLAIN_CONVERSATIONS)).items()
            },
            **{
                f"{name} per turn": value
                for name, value in (await _counted(url, FULL, "samplellm", CONVERSATIONS)).items()
            },
            "Python calls per turn": await _python_calls(url),
            "commands per second at rest": idle,
            "modules of rolecall --help": _modules(),
        }


async def _counted(url: str, roles: Iterable[Role], to: str, turns: int) -> Figures:
    """Scripts and server commands, those inside scripts included, and bytes that are kept; by hop or by turn."""
    hops = HOPS + 1 if to == "ping" else 2
    async with running(url, roles) as runtime:
        server = runtime.bus.server
        before = await _calls(server)
        await _finish(runtime, to, turns, hops)
        after = await _calls(server)
        units = turns * (HOPS + 1 if to == "ping" else 1)
        scripts = after["evalsha"] - before.get("evalsha", 0)
        figures = {"scripts": scripts / units, "commands": (sum(after.values()) - sum(before.values())) / units}
        return figures if to == "ping" else {**figures, "bytes kept": await _kept(server) / turns}


async def _python_calls(url: str) -> float:
    """Function calls of the whole process, which admits the turns and works on them."""
    profile = cProfile.Profile()
    async with running(url, FULL) as runtime:
        await _finish(runtime, "samplellm", 50, 2)
        profile.enable()
        try:
            await _finish(runtime, "samplellm", PROFILED, 2)
        finally:
            profile.disable()
    return sum(entry.callcount for entry in profile.getstats()) / PROFILED


async def _finish(runtime: Runtime, to: str, turns: int, hops: int) -> None:
    """Admit so many turns of conversations of their own and wait for the last to be settled."""
    everyone = runtime.worker.roster.everyone
    aim = sum(instance.handled for instance in everyone()) + turns * hops
    envelopes = (Envelope(conversation=f"bench:{aim}-{n}", payload={"text": FILLER, "to": to}) for n in range(turns))
    async with asyncio.timeout(LONGEST_SECONDS):
        await asyncio.gather(*(admit(runtime.bus, envelope) for envelope in envelopes))
        while sum(instance.handled for instance in everyone()) < aim:
            await asyncio.sleep(0.01)


async def _calls(server: Server) -> dict[str, int]:
    stats: bytes = await server.call("INFO", "commandstats")
    counts = (line.partition(":calls=") for line in stats.decode().splitlines() if line.startswith("cmdstat_"))
    return {name.removeprefix("cmdstat_"): int(rest.partition(",")[0]) for name, _, rest in counts}


async def _kept(server: Server) -> int:
    """Bytes of all keys that belong to conversations."""
    keys: list[bytes] = await server.call("KEYS", "*bench:*")
    sizes = await asyncio.gather(*(server.call("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys))
    return sum(size or 0 for size in sizes)


def _modules() -> float:
    done = subprocess.run([sys.executable, "-c", COUNT_MODULES], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def losses(figures: Figures, baseline: Figures) -> list[str]:
    """A line for each counter that is higher than its baseline by more than the tolerance allows."""
    return [
        f"{name}: {value:.1f}, {value / baseline[name] - 1:+.0%} over the baseline of {baseline[name]:.1f}"
        for name, value in figures.items()
        if value > TOLERANCE * baseline.get(name, value)
    ]


def main() -> None:
    """Measure, print, and compare or record."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__)
    parser.add_argument("--record", action="store_true", help="record the figures as the baseline")
    options = parser.parse_args()
    figures = on_fastest_loop(measure())
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    for name, value in figures.items():
        print(f"{name:32}{value:12.1f}   baseline {baseline.get(name, float('nan')):.1f}")
    if options.record:
        BASELINE.write_text(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2) + "\n")
        return
    mark = "::warning title=slower than the baseline::" if "GITHUB_ACTIONS" in os.environ else "warning: "
    for line in losses(figures, baseline):
        print(f"{mark}{line}")


if __name__ == "__main__":
    main()
