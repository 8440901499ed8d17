"""A process that is the scribe, for the tests. ``run`` is a plain one; ``halt`` says when a batch is written and
not yet acknowledged, and stays there until it is killed. Both say what trouble they have."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import UTC
from pathlib import Path

from rolecall.redis.server import connected
from rolecall.transcripts.scribe import Batch, Scribe


class SayingScribe(Scribe):
    """Says what keeps it from writing."""

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            say(problem)
        super()._report(problem)


class HaltingScribe(SayingScribe):
    """Stops where a kill would have to be lucky to hit."""

    async def _remove(self, batch: Batch) -> None:
        say("written")
        await asyncio.Event().wait()


async def main(kind: str, url: str, log_dir: Path, lease_seconds: float) -> None:
    made = HaltingScribe if kind == "halt" else SayingScribe
    async with connected(url) as server:
        scribe = made(server, 1, log_dir, process="m4:1", tz=UTC, lease_seconds=lease_seconds)
        say("ready")
        await scribe.run()


def say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    kind, url, log_dir, lease_seconds = sys.argv[1:]
    asyncio.run(main(kind, url, Path(log_dir), float(lease_seconds)))
