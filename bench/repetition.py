"""``python -m bench.repetition``: twenty turns of the tiny model in one conversation, twice.

Once plain: with the whole history and greedy sampling. Once with the sampling of ``MANNERS`` and the last six messages.
Prints how many answers repeat a sentence; with ``--show`` the answers too. Takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from pathlib import Path

from agents.samplellm import RECENT
from rolecall.models import Delta, Message, Request
from rolecall.models.providers.local import LocalModel
from rolecall.redis.server import RedisServer
from rolecall.serving.launcher import Launcher
from rolecall.settings import Settings
from tests.valkey import ValkeyProcess

SYSTEM = Message("system", "You are a helpful AI assistant. Answer clearly and briefly.")
QUESTIONS = (
    "Hello!", "What is the capital of France?", "Tell me a story about a sailor.", "And then what happened?",
    "Who wrote Romeo and Juliet?", "List three fruits.", "Explain what rain is.", "Why is the sky blue?",
    "What can you do?", "Write a poem about the sea.", "Make it shorter.", "What is the capital of France?",
    "What is the largest planet?", "How do I boil an egg?", "Give me a name for a cat.", "Another one.",
    "What is Python?", "Translate 'good morning' to French.", "Tell me a joke.", "Thank you, goodbye!",
)  # fmt: skip
HISTORY = 20
SENTENCE = 15
"""Characters below which a repeated sentence does not count."""


def repeats(text: str) -> int:
    """How many sentences of ``text`` stood in it before."""
    parts = (part.strip().lower() for part in re.split(r"(?<=[.!?])\s+|\n", text))
    sentences = [part for part in parts if len(part) > SENTENCE]
    return len(sentences) - len(set(sentences))


async def conversation(model: LocalModel, recent: int) -> list[str]:
    """The answers to QUESTIONS, each asked with the ``recent`` messages before it."""
    history, answers = list[Message](), list[str]()
    for question in QUESTIONS:
        asked = Request((SYSTEM, *history[-recent:], Message("user", question)))
        answers.append("".join([event.text async for event in model.stream(asked) if isinstance(event, Delta)]))
        history += [Message("user", question), Message("assistant", answers[-1])]
    return answers


async def measure(url: str, directory: Path, show: bool) -> None:
    """Both conversations, with a line for each."""
    server = RedisServer(url)
    serving = Launcher(server, "bench", directory)
    for name, recent in (("plain", HISTORY), ("manners", RECENT)):
        model = LocalModel("smollm2", Settings(), serving)
        if name == "plain":
            model._sampling = {}
        answers = await conversation(model, recent)
        repeated, most = sum(map(bool, map(repeats, answers))), max(map(repeats, answers))
        print(f"{name:7} {repeated} of {len(answers)} answers repeat a sentence, one of them {most} times", flush=True)
        for question, answer in zip(QUESTIONS, answers, strict=True) if show else ():
            print(f"  > {question}\n  {' '.join(answer.split())}\n")
        await model.aclose()
    await serving.aclose()
    await server.aclose()


def main() -> None:
    """Start a server and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.repetition", description=__doc__)
    parser.add_argument("--show", action="store_true", help="print questions and answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rc") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        try:
            asyncio.run(measure(process.url, Path(directory), options.show))
        finally:
            process.kill()


if __name__ == "__main__":
    main()
