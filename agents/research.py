"""Researches: splits a question, has the parts answered at the same time, and joins the answers."""

import re

from rolecall import Agent, Context, Envelope
from rolecall.errors import CallFailed

USAGE = "What should I research? For example: /research Why do leaves turn red in autumn?"
MOST_PARTS = 3
PART_CHARS = 200
NOTE_CHARS = 1500
"""Characters of an answer that are joined: also a small model has to read all of them."""
ANGLES = ("In short: {question}", "Explain the reasons: {question}")
"""The parts when the model gives no usable ones, as tiny models do."""
BRIEFLY = "In a few short sentences: {question}"
NUMBERED = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s*")


class ResearchAgent(Agent):
    """Answers in depth, from several angles: /research Why do leaves turn red?"""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """Each step is recorded: after a crash nothing is asked, and paid for, twice."""
        question = envelope.words.strip()
        if not question:
            return envelope.reply(USAGE, remember=False)
        split = await ctx.ask(ctx.model, [], question, system=ctx.prompt("research_split", most=MOST_PARTS))
        parts = parts_of(split.text, question)
        replies = await ctx.gather(*(ctx.call("samplellm", part) for part in parts), return_failures=True)
        failed = [reply for reply in replies if isinstance(reply, CallFailed)]
        if len(failed) == len(parts):
            raise failed[0]
        answers = zip(parts, replies, strict=True)
        found = [(part, reply.text[:NOTE_CHARS]) for part, reply in answers if not isinstance(reply, CallFailed)]
        notes = "\n\n".join(f"{part}\n{text}" for part, text in found)
        # The question alone in the message: tiny models answer the notes when they stand there.
        system = ctx.prompt("research_join", notes=notes)
        return envelope.reply(await ctx.stream(ctx.model, [], BRIEFLY.format(question=question), system=system))


def parts_of(text: str, question: str) -> list[str]:
    """The questions in a model's list, at most MOST_PARTS; two angles of ``question`` if there are none."""
    lines = [NUMBERED.sub("", line).strip() for line in text.splitlines()]
    found = list(dict.fromkeys(line for line in lines if line.endswith("?") and len(line) <= PART_CHARS))
    return found[:MOST_PARTS] or [angle.format(question=question) for angle in ANGLES]
