"""The benchmark ends what it starts, and prints what can be compared."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import re
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bench import __main__ as bench
from bench import guard, raw
from bench.capacity import Cost, Plan, needs
from bench.peers import __main__ as peers
from bench.raw import CHAIN, pass_on
from rolecall.redis.server import RedisServer

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if path.stem != "__main__")
COMMANDS = re.compile(r"python -m ((?:bench|tests)(?:\.\w+)*)")


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_benchmark_begins(name: str) -> None:
    importlib.import_module(f"bench.{name}")


def test_each_program_that_the_documentation_names_exists() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "Makefile"]
    named = {name for page in pages for name in COMMANDS.findall(page.read_text())}
    assert len(named) > 10
    assert [name for name in sorted(named) if importlib.util.find_spec(name) is None] == []


async def test_a_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "END_SECONDS", 0.1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(600)", stdin=asyncio.subprocess.PIPE
    )
    await raw._end(process)
    assert process.returncode is not None and process.returncode < 0


async def test_the_links_of_the_raw_loop_end_while_they_read(server: RedisServer) -> None:
    stopped = asyncio.Event()
    links = [asyncio.create_task(pass_on(server.url, *pair, stopped)) for pair in pairwise(CHAIN)]
    async with Redis.from_url(server.url) as client:
        await client.xadd(CHAIN[0], {"e": "{}"})
        await client.xread({CHAIN[-1]: "0"}, count=1, block=20_000)
    stopped.set()
    began = time.monotonic()
    await asyncio.wait_for(asyncio.gather(*links), 60)
    assert time.monotonic() - began < 30  # a read lasts a second, on a busy machine a few


def test_the_json_has_the_ratios_of_one_run_for_both_modes_and_the_idle_figures() -> None:
    def row(name: str, value: float) -> bench.Row:
        return bench.Row(name, {"everysec": value, "always": value / 2})

    rows = [
        row(bench.RAW_ROW, 50_000), row(bench.PLAIN_ROW, 10_000), row(bench.FULL_ROW, 2_000),
        row(bench.RAW_P50_ROW, 0.5), row(bench.RAW_P99_ROW, 1.0), row(bench.P50_ROW, 1.0), row(bench.P99_ROW, 3.0),
        *(bench.Row(name, {"everysec": 4.4}) for name in bench.IDLE_ROWS.values()),
    ]  # fmt: skip
    found = json.loads(bench.as_json(rows))
    assert found["everysec"] == {
        "raw": 50_000, "plain": 10_000, "plain_share": 0.2, "full_turns": 2_000, "full_turns_of_raw": 0.04,
        "two_hops_p50_ms": 1.0, "two_hops_p50_of_raw": 2.0, "two_hops_p99_ms": 3.0, "two_hops_p99_of_raw": 3.0,
    }  # fmt: skip
    assert found["always"]["raw"] == 25_000
    assert found["idle"] == {"commands_per_second": 4.4, "connections": 4.4}


def test_what_a_number_of_turns_needs_follows_from_the_cost_of_one() -> None:
    cost = Cost(server=600e-6, worker=600e-6, scribe=300e-6, memory=8e3, log=12e3, traffic=12e3, commands=60)
    few, many = (needs(cost, rate, Plan()) for rate in (10, 1_000_000))
    assert (few["primaries"], few["worker processes"], few["calls of the model at once"]) == ("1", "1", "1")
    assert many["primaries"] == "17" and many["calls of the model at once"] == "83,334"
    assert many["worker processes"] == "2,171"
    assert needs(cost, 1_000_000, Plan(days=3))["memory, GB"] == "3,456.0"


async def test_a_peer_whose_process_ends_is_named_with_its_last_words_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = peers.Peer("broken", "no_such_program.py")
    monkeypatch.setattr(peers, "WIDTH", 2)
    raw_loop = next(peer for peer in peers.PEERS if peer.name == peers.RAW)
    found = await peers.run([broken, raw_loop], rounds=1, seconds=0.01, calls=2)
    assert list(found) == [raw_loop] and found[raw_loop].rates[0] > 0 and found[raw_loop].p50[0] > 0
    assert "broken is left out: its process ended: " in capsys.readouterr().out


def test_the_shares_of_the_peers_are_of_the_bare_loop_of_their_run(tmp_path: Path) -> None:
    figures = {
        peers.PEERS[1]: peers.Figures([5_000], [1.0], [2.0]),
        peers.PEERS[0]: peers.Figures([20_000, 10_000, 90_000], [0.5], [0.7]),
    }
    peers.draw(peers.table(figures), tmp_path)
    for name in ("light", "dark"):
        drawn = (tmp_path / f"peers-{name}.svg").read_text()
        assert "25.0%" in drawn and drawn.index("20,000") < drawn.index("5,000")


def test_a_counter_that_is_more_than_a_quarter_over_its_baseline_is_a_loss_and_a_new_one_is_none() -> None:
    baseline = {"scripts per turn": 3.0, "commands per turn": 60.0}
    assert guard.losses({"scripts per turn": 3.7, "commands per turn": 10.0, "new": 9.0}, baseline) == []
    assert guard.losses({"scripts per turn": 3.0, "commands per turn": 90.0}, baseline) == [
        "commands per turn: 90.0, +50% over the baseline of 60.0"
    ]


def test_the_guard_has_a_baseline_for_what_a_turn_costs() -> None:
    assert {"scripts per turn", "commands per hop", "Python calls per turn"} <= json.loads(
        guard.BASELINE.read_text()
    ).keys()
