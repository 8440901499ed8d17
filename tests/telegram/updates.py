"""What a bot still has to hear of: updates wait for a poll or go to a webhook."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from tests.telegram.entities import Refused, bad

WEBHOOK_IS_SET = "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
NOT_BY_DEFAULT = ("chat_member", "message_reaction", "message_reaction_count")
AGAIN = 0.05
"""Seconds until a webhook that did not answer 200 is called again."""


class Updates:
    """The queue of one bot. An update leaves it when a poll asks for a later one, or when the webhook answers 200."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, str, dict[str, Any]]] = deque()
        self.allowed: list[str] = []
        self.url = ""
        self.secret = ""
        self.failure = ""
        self._next = 700_000_001
        self._poll: asyncio.Future[None] | None = None
        self._some = asyncio.Event()
        self._hook: asyncio.Task[None] | None = None

    @property
    def polling(self) -> bool:
        return self._poll is not None

    def push(self, kind: str, body: dict[str, Any]) -> int:
        """Add an update if the bot wants this kind; returns its id, 0 if not."""
        if kind not in self.allowed and (self.allowed or kind in NOT_BY_DEFAULT):
            return 0
        self._next += 1
        self.waiting.append((self._next, kind, body))
        self._some.set()
        if self._poll and not self._poll.done():
            self._poll.set_result(None)
        return self._next

    async def poll(self, offset: int, limit: int, seconds: float) -> list[dict[str, Any]]:
        """getUpdates: what is left from ``offset`` on, as soon as there is something. Of two polls the one that waits
        is refused."""
        if self.url:
            raise Refused(409, f"Conflict: {WEBHOOK_IS_SET}")
        self._end_poll("terminated by other getUpdates request; make sure that only one bot instance is running")
        self._confirm(offset)
        if not self.waiting and seconds > 0:
            await self._wait(seconds)
        return [{"update_id": number, kind: body} for number, kind, body in list(self.waiting)[: limit or 100]]

    async def set_webhook(self, url: str, secret: str, drop: bool) -> None:
        """Deliver to ``url`` from now on; an empty one ends it."""
        if self._hook:
            self._hook.cancel()
            await asyncio.gather(self._hook, return_exceptions=True)
            self._hook = None
        self.url, self.secret, self.failure = url, secret, ""
        if drop:
            self.waiting.clear()
        if url:
            self._end_poll("terminated by setWebhook request")
            self._hook = asyncio.create_task(self._deliver(), name="telegram webhook")

    async def stop(self) -> None:
        await self.set_webhook("", "", drop=False)
        self._end_poll("the server stops")

    def _confirm(self, offset: int) -> None:
        if offset < 0:
            self.waiting = deque(list(self.waiting)[offset:])
        while self.waiting and self.waiting[0][0] < offset:
            self.waiting.popleft()

    def _end_poll(self, reason: str) -> None:
        if self._poll and not self._poll.done():
            self._poll.set_exception(Refused(409, f"Conflict: {reason}"))

    async def _wait(self, seconds: float) -> None:
        mine = self._poll = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(mine, seconds)
        except TimeoutError:
            pass
        finally:
            if self._poll is mine:
                self._poll = None

    async def _deliver(self) -> None:
        import httpx

        headers = {"X-Telegram-Bot-Api-Secret-Token": self.secret} if self.secret else {}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            while True:
                self._some.clear()
                while self.waiting:
                    number, kind, body = self.waiting[0]
                    self.failure = await self._call(client, headers, {"update_id": number, kind: body})
                    if self.failure:
                        await asyncio.sleep(AGAIN)
                    elif self.waiting and self.waiting[0][0] == number:
                        self.waiting.popleft()
                await self._some.wait()

    async def _call(self, client: Any, headers: dict[str, str], update: dict[str, Any]) -> str:
        """Empty once it was taken, else what went wrong."""
        import httpx

        try:
            status = (await client.post(self.url, json=update, headers=headers)).status_code
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return "" if 200 <= status < 300 else f"Wrong response from the webhook: {status}"


def checked_secret(secret: str) -> str:
    """Raise Refused unless it may be a webhook's secret."""
    if len(secret) > 256 or not all(char.isascii() and (char.isalnum() or char in "_-") for char in secret):
        raise bad("secret token contains unallowed characters")
    return secret
