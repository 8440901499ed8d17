"""Requests to Telegram: a few at a time, and a word of its own for being asked to wait."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode

import msgspec
from telegram.error import NetworkError, TelegramError, TimedOut
from telegram.request import HTTPXRequest, RequestData

from rolecall.frontends.telegram.direct import FAILURES, Direct

AT_ONCE = 24
"""Requests on their way at once. More would only wait in Telegram's own limits, and each would slow down all others:
the library below goes through all of its connections for every request."""
TOO_MANY = 429


class Wait(TelegramError):
    """Raised when Telegram asks to wait for so many ``seconds``; the library's own error warns whoever reads them."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Telegram asks to wait {seconds:g} s")
        self.seconds = seconds


class _Parameters(msgspec.Struct):
    retry_after: float


class _Refusal(msgspec.Struct):
    parameters: _Parameters


class Requests(HTTPXRequest):
    """Requests to Telegram, a few at a time; the others wait in the order they came, for as long as it takes. That the
    bot is typing is not said while others wait: raises TimedOut. Raises Wait in place of RetryAfter."""

    __slots__ = ("_direct", "_room")

    def __init__(self, direct: Direct | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._direct = direct

    async def shutdown(self) -> None:
        """See HTTPXRequest."""
        if self._direct is not None:
            await self._direct.aclose()
        await super().shutdown()

    async def do_request(
        self, url: str, method: str, request_data: RequestData | None = None, *timeouts: Any, **named: Any
    ) -> tuple[int, bytes]:
        """See HTTPXRequest."""
        if self._room.locked() and url.endswith("/sendChatAction"):
            raise TimedOut("left out: others wait")
        async with self._room:
            if self._direct is not None and method == "POST" and not (request_data and request_data.contains_files):
                status, payload = await self._post(self._direct, url, request_data)
            else:
                status, payload = await super().do_request(url, method, request_data, *timeouts, **named)
        if status == TOO_MANY:
            raise Wait(_seconds(payload))
        return status, payload

    async def _post(self, direct: Direct, url: str, data: RequestData | None) -> tuple[int, bytes]:
        form = urlencode(data.json_parameters if data else {}).encode()
        timeout = self.read_timeout or 0
        try:
            return await direct.post(url, form, connect=timeout, answer=timeout)
        except TimeoutError:
            raise TimedOut from None
        except FAILURES as error:
            raise NetworkError(f"{type(error).__name__}: {error}") from None


def _seconds(payload: bytes) -> float:
    """How long a refusal asks to wait; one that does not say, for a moment."""
    try:
        return msgspec.json.decode(payload, type=_Refusal).parameters.retry_after
    except msgspec.MsgspecError:
        return 1.0
