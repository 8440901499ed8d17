"""The real python-telegram-bot, connected to the local Telegram."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from telegram import Bot
from telegram.error import TelegramError
from telegram.request import HTTPXRequest

from tests.telegram.api import TelegramApi


@contextlib.asynccontextmanager
async def connected(api: TelegramApi, token: str = "") -> AsyncIterator[Bot]:
    """A bot with this token, the right one by default."""
    asking, polling = (HTTPXRequest(16, pool_timeout=30, httpx_kwargs={"trust_env": False}) for _ in range(2))
    bot = Bot(token or api.token, f"{api.url}/bot", f"{api.url}/file/bot", asking, polling)
    await asyncio.gather(asking.initialize(), polling.initialize())
    yield bot
    await asyncio.gather(asking.shutdown(), polling.shutdown())


async def refused(asked: Coroutine[Any, Any, object], kind: type[TelegramError], words: str) -> None:
    """What was asked ends with this error, and these words are in it in whatever case."""
    with pytest.raises(kind) as found:
        await asked
    assert words.lower() in str(found.value).lower()
