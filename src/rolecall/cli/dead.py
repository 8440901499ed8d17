"""`rolecall dead`: what was given up on, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from rolecall.bus.admission import REFUSALS
from rolecall.bus.bus import Bus
from rolecall.bus.dead_letters import (
    DeadLetter,
    dead_letters,
    deliver_again,
    drop,
    find_dead_letter,
    plain,
    replay,
)
from rolecall.bus.envelope import short_turn_id
from rolecall.cli.output import print_lines, print_table, visiting
from rolecall.errors import ConfigError, RolecallError
from rolecall.transcripts.record import visible

REASON_CHARS = 100


async def list_letters(app_dir: Path | None, console: Console, *, as_json: bool) -> int:
    """One row per dead letter, the newest last."""
    async with visiting(app_dir) as session:
        letters = await dead_letters(session.bus)
    if as_json:
        print_lines(console, (json.dumps(plain(letter)) for letter in letters))
    elif letters:
        head = ("id", "kind", "given up", "conversation", "from", "tries", "reason")
        print_table(console, head, [_row(letter) for letter in letters], right=(5,))
    else:
        print_lines(console, ["There are no dead letters."])
    return 0


async def show_letter(app_dir: Path | None, letter_id: str, console: Console, *, as_json: bool) -> int:
    """All there is about one."""
    async with visiting(app_dir) as session:
        letter = await find_dead_letter(session.bus, letter_id)
    if as_json:
        print_lines(console, [json.dumps(plain(letter))])
        return 0
    for name, value in plain(letter).items():
        text = json.dumps(value, indent=2, ensure_ascii=False) if name == "envelope" else str(value)
        print_lines(console, [f"{name:13} {visible(line)}" for line in text.splitlines()[:1]])
        print_lines(console, [f"{'':13} {visible(line)}" for line in text.splitlines()[1:]])
    return 0


async def replay_letters(app_dir: Path | None, ids: Sequence[str], everything: bool, console: Console) -> int:
    """Send them again: envelopes as the newest turn of their conversation, deliveries to their front end. Exit status 1
    if one could not be."""
    failures = 0
    async with visiting(app_dir) as session:
        for letter in await _chosen(session.bus, ids, everything):
            failures += not await _replay(session.bus, letter, console)
    return 1 if failures else 0


async def drop_letters(app_dir: Path | None, ids: Sequence[str], everything: bool, console: Console) -> int:
    """Remove them for good."""
    async with visiting(app_dir) as session:
        for letter in await _chosen(session.bus, ids, everything):
            await drop(session.bus, letter.id)
            print_lines(console, [f"{letter.id}  dropped"])
    return 0


async def _chosen(bus: Bus, ids: Sequence[str], everything: bool) -> list[DeadLetter]:
    if bool(ids) == everything:
        raise ConfigError("name the dead letters by their ids, or all of them with --all")
    return await dead_letters(bus) if everything else [await find_dead_letter(bus, letter_id) for letter_id in ids]


async def _replay(bus: Bus, letter: DeadLetter, console: Console) -> bool:
    try:
        if letter.kind == "delivery":
            await deliver_again(bus, letter)
            print_lines(console, [f"{letter.id}  is delivered again by {visible(letter.source)}"])
            return True
        admission = await replay(bus, letter, bus.instance("operator"))
    except RolecallError as error:
        print_lines(console, [f"{letter.id}  not replayed: {visible(str(error))}"], style="red")
        return False
    if not admission.accepted:
        print_lines(console, [f"{letter.id}  not replayed, it stays: {REFUSALS[admission.outcome]}"], style="red")
        return False
    turn = short_turn_id(letter.conversation, admission.turn)
    where = f"waits in place {admission.place}" if admission.outcome == "WAIT" else "runs"
    print_lines(console, [f"{letter.id}  {where} as turn {admission.turn} of {visible(letter.conversation)} ({turn})"])
    return True


def _row(letter: DeadLetter) -> tuple[object, ...]:
    when = datetime.fromtimestamp(letter.ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    reason = visible(letter.reason if len(letter.reason) <= REASON_CHARS else f"{letter.reason[:REASON_CHARS]}…")
    conversation, role = visible(letter.conversation) or "(none)", letter.role or visible(letter.source) or "?"
    return letter.id, letter.kind, when, conversation, role, letter.deliveries, reason
