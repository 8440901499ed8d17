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
STEPS_CONFIG = CONFIG.replace("ManagerAgent, WorkerAgent", "ManagerAgent, PartAgent, WorkerAgent").replace(
    "instances=8)", "instances=8), Role(PartAgent, instances=8)"
)
STEPS_AGENTS = '''\
import asyncio
import json
import os
import random
import time
from pathlib import Path

from rolecall import Agent, Context, Envelope
from rolecall.models import Delta, Done

EFFECTS = Path(__file__).parents[2] / "books" / "effects.jsonl"


def note(what: str, question: str, key: str = "") -> None:
    """Write an effect down as it begins: one write, whole or none."""
    line = json.dumps({"what": what, "question": question, "key": key, "at": time.time(), "process": os.getpid()})
    file = os.open(EFFECTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{line}\\n".encode())
    os.close(file)


class Model:
    """Is paid for each answer."""

    name = "chaos@test"

    async def stream(self, request):
        what, question = request.messages[-1].text.split()
        note(what, question)
        await asyncio.sleep(random.uniform(0.02, 0.2))
        yield Delta(f"{what} of {question}")
        yield Done("stop")

    async def aclose(self) -> None:
        pass


MODEL = Model()


async def charge(question: str, key: str) -> str:
    note("charge", question, key)
    await asyncio.sleep(random.uniform(0, 0.1))
    return f"charged {question}"


class ManagerAgent(Agent):
    """Sends every turn on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via("worker")


class PartAgent(Agent):
    """Answers a part."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        await asyncio.sleep(random.uniform(0.02, 0.3))
        return envelope.reply(f"part {envelope.text}")


class WorkerAgent(Agent):
    """Two calls of a model, a charge, three calls of another role, a question, and two seconds of sleep."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        question = envelope.text
        plan = await ctx.ask(MODEL, [], f"plan {question}")
        charged = await ctx.once("charge", charge, question, ctx.step_key)
        parts = await ctx.gather(*(ctx.call("part", f"{question}/{n}") for n in range(3)))
        agreed = await ctx.confirm(f"Send {question}?")
        await ctx.sleep(2)
        joined = await ctx.ask(MODEL, [], f"join {question}")
        found = [plan.text, charged, *(part.text for part in parts), agreed, joined.text]
        wanted = [f"plan of {question}", f"charged {question}", *(f"part {question}/{n}" for n in range(3)), True,
                  f"join of {question}"]
        if found != wanted:
            return envelope.reply(f"wrong: {found}")
        history = await ctx.memory.history()
        return envelope.reply(f"echo {question} after {len(history) // 2}")
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


def write_application(directory: Path, *, steps: bool = False) -> None:
    """Make ``directory`` an application directory; with ``steps``, of agents that call each other, ask and wait."""
    (directory / "agents").mkdir(parents=True)
    (directory / "config.py").write_text(STEPS_CONFIG if steps else CONFIG)
    (directory / "agents" / "__init__.py").write_text("")
    (directory / "agents" / "chaos.py").write_text(STEPS_AGENTS if steps else AGENTS)
