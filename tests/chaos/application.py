"""The application that chaos runs: a manager that routes, and a role that takes its time and answers what can be
checked."""

from __future__ import annotations

from pathlib import Path

ANSWERING = "worker"
CONFIG = """\
from agents.chaos import ManagerAgent, WorkerAgent
from rolecall import Config, Role

config = Config(roles=(Role(ManagerAgent, instances=4), Role(WorkerAgent, instances=8)))
"""
AGENTS = '''\
import asyncio
import random

from rolecall import Agent, Context, Envelope


class ManagerAgent(Agent):
    """Sends every turn on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("worker")


class WorkerAgent(Agent):
    """Answers after a while, in pieces, with the question and the number of turns it remembers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        history = await ctx.memory.history()
        pause = random.uniform(0.05, 0.6) / 2
        for piece in ("echo ", envelope.text):
            await ctx.emit(piece)
            await asyncio.sleep(pause)
        return envelope.reply(f"echo {envelope.text} after {len(history) // 2}")
'''
CLOCKS = {"LEASE_SECONDS": "2", "HEARTBEAT_SECONDS": "0.5", "SCAN_SECONDS": "0.4", "DRAIN_SECONDS": "5"}
"""The clocks of the bus at an eighth of their defaults. What waits for a lease here waits eight times as long there."""
DELIVERIES = {"MAX_DELIVERIES": "6"}
"""With a death a second an innocent turn may well die three times, and chaos wants its answer all the same."""


def question(conversation: int, turn: int) -> str:
    """What a user asks."""
    return f"q{conversation}.{turn}"


def answer(conversation: int, turn: int) -> str:
    """The one right answer: it repeats the question, and all earlier turns are remembered, each once."""
    return f"echo {question(conversation, turn)} after {turn - 1}"


def conversation_name(number: int) -> str:
    """The conversation's id."""
    return f"chaos:{number}"


def write_application(directory: Path) -> None:
    """Make ``directory`` an application directory."""
    (directory / "agents").mkdir(parents=True)
    (directory / "config.py").write_text(CONFIG)
    (directory / "agents" / "__init__.py").write_text("")
    (directory / "agents" / "chaos.py").write_text(AGENTS)
