"""A deployment with something to look at, for the browser: real agents, a slow model, some trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolecall import Agent, Context, Envelope, Reject
from rolecall.agent.role import Role
from tests.deployment import Deployment, deployed
from tests.http.server import serving

PIECE = 12
SLOW = 0.2
ANSWERS = {
    "How does a message travel here?": """A message takes **three steps**, and each of them is a stream you can look at:

1. The *manager* reads it and writes the route once.
2. Every role on the route takes it in turn: `lang`, then `samplellm`.
3. The answer goes back to where the question came from, exactly once.

Nothing is lost when a process dies: its lease runs out and another instance takes over.

```python
async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
    answer = await ctx.stream(ctx.model, await ctx.memory.history(), envelope.text)
    return envelope.reply(answer)
```

| step | role | takes |
|---|---|---:|
| decide | manager | 2 ms |
| language | lang | 1 ms |
| answer | samplellm | 1.4 s |

> The lock of a conversation *is* its pending entry. See [the data model](https://example.org/data-model) for all keys.
""",
}


class ManagerAgent(Agent):
    """Decides who answers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text.startswith("/translate "):
            return envelope.via("translation", text=envelope.text.partition(" ")[2])
        return envelope.via("lang", str(envelope.payload.get("role") or "samplellm"))


class LangAgent(Agent):
    """Finds out the language."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.forward(lang="en")


class SampleLLMAgent(Agent):
    """Answers with its model."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        """What it is asked is what it answers, so that a test says what an answer holds."""
        if envelope.text.startswith("ask me"):
            sure = await ctx.confirm("Shall I?")
            colour = await ctx.choose("Which colour?", ("red", "green", "blue"))
            return envelope.reply(f"{sure} {colour}")
        if envelope.text.startswith("repeat "):
            return envelope.reply(envelope.text.removeprefix("repeat "), plain=True)
        if envelope.text.startswith("bury me"):
            raise Reject(envelope.text.partition(" because ")[2] or "it was asked for")
        answer = (await ctx.ask(ctx.model, (), envelope.text)).text.removeprefix("echo: ")
        answer = ANSWERS.get(answer, answer)
        for start in range(0, len(answer), PIECE):
            await ctx.emit(answer[start : start + PIECE])
            await asyncio.sleep(SLOW if answer.startswith("slowly") else 0)
        return envelope.reply(answer)


class TranslationAgent(Agent):
    """Translates into another language."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text))


ROLES = (
    Role(ManagerAgent),
    Role(LangAgent),
    Role(SampleLLMAgent, instances=3, models=("echo@test",)),
    Role(TranslationAgent, models=("echo@test",), match="/translate"),
)


@dataclass
class Stage:
    """A deployment and the address of its page."""

    deployment: Deployment
    url: str

    async def ask_all(self, conversation: str, texts: Sequence[str], **options: Any) -> None:
        """One turn after the other."""
        for text in texts:
            await self.deployment.ask(conversation, text, **options)


@asynccontextmanager
async def staged(directory: Path, roles: Sequence[Role] = ROLES, **settings: Any) -> AsyncIterator[Stage]:
    """Everything at work, with the page on a free port of the loopback."""
    given = {"heartbeat_seconds": 0.5, **settings}
    async with (
        deployed(directory, roles, scribe=True, **given) as deployment,
        serving(deployment.session.application) as url,
    ):
        yield Stage(deployment, url)
