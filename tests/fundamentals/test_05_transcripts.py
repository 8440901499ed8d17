"""Transcripts: every conversation can be read, one file for each of its sessions."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from rolecall import Agent, Context, Envelope, Role
from tests.deployment import deployed

LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\] \[ *(\d+\.\d{3})s\] \[([^\]]+)\] ([A-Z_]+): ?(.*)")


class ManagerAgent(Agent):
    """Passes on, with a word for the record."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        ctx.log("an easy one")
        return envelope.via("answer")


class AnswerAgent(Agent):
    """Answers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("Hello, Ann.\nHow are you?")


ROLES = (Role(ManagerAgent), Role(AnswerAgent))


async def lines_of(log_dir: Path, count: int) -> list[str]:
    async with asyncio.timeout(10):
        while True:
            files = sorted((log_dir / "conversations").rglob("*.log"))
            lines = [line for file in files for line in file.read_text().splitlines()]
            if len(lines) >= count:
                return lines
            await asyncio.sleep(0.01)


async def test_a_turn_reads_from_top_to_bottom_in_one_file(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, scribe=True) as app:
        await app.ask("terminal:ann", "Hello", title="Ann @ann")
        lines = await lines_of(app.log_dir, 7)

    parsed = [LINE.match(line) for line in lines]
    assert all(parsed), lines
    words = [match[4] for match in parsed if match]
    assert words == ["NOTE", "RECEIVED", "STARTED", "NOTE", "SENT", "STARTED", "PROCESSING_COMPLETE"]
    assert 'terminal:ann/1 "Hello"' in lines[1]
    assert "Ann @ann" in lines[0]
    assert "\\n" in lines[-1]


async def test_conversations_have_a_directory_each(tmp_path: Path) -> None:
    async with deployed(tmp_path, ROLES, scribe=True) as app:
        await app.ask("terminal:ann", "Hello")
        await app.ask("terminal:bob", "Hello")
        await lines_of(app.log_dir, 14)

    assert len(list((tmp_path / "log" / "conversations").iterdir())) == 2
