"""One process of several that use a model's quota: asks as fast as it is let, and prints when it used what, of which
slice."""

from __future__ import annotations

import asyncio
import sys
import time

from rolecall.errors import NotNow
from rolecall.models import Caller, Message, Request, Usage
from rolecall.models.gate import Gate
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings, Terms

TOKENS = Usage(120, 80)


async def main(url: str, minute: float, minutes: float, name: str) -> None:
    """Use the quota for so many of the scaled minutes, with four turns at once."""
    server = RedisServer(url)
    gate = Gate(server, "m@test", Terms(tpm=10_000), Settings(quota_minute_seconds=minute), _nobody)
    until = time.time() + minute * minutes

    async def talk(turn: int) -> None:
        request = Request((Message("user", "Hello"),), caller=Caller(f"{name}:{turn}", "1"))
        while time.time() < until:
            try:
                call = await gate.enter(request, book=True)
            except NotNow as later:
                await asyncio.sleep(later.after)
                continue
            call.usage = TOKENS
            print(time.time(), call.slice, TOKENS.tokens_in + TOKENS.tokens_out)
            await gate.left(call, "OK")

    await asyncio.gather(*(talk(turn) for turn in range(4)))
    await gate.aclose()
    await server.aclose()


async def _nobody(conversation: str) -> bool:
    """Nobody sleeps here."""
    return True


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
