"""The getUpdates loop: the offset is raised past an update only when it was received."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from telegram import Bot, Update

Receive = Callable[[Update], Awaitable[None]]
ALLOWED = ("message", "edited_message", "callback_query", "my_chat_member")
"""The kinds of updates that are asked for."""


class Poller:
    """Asks for updates and hands each to ``receive``, several at a time. ``last`` is the monotonic time of the last
    answer of Telegram, for a watchdog."""

    def __init__(self, bot: Bot, receive: Receive, *, seconds: int = 25) -> None:
        self.bot = bot
        self.receive = receive
        self.seconds = seconds
        self.last = 0.0

    async def run(self) -> None:
        """Poll until cancelled. Goes on after whatever passes: Telegram away, 429, 5xx. Raises Conflict when another
        polls the same bot or a webhook is set, InvalidToken or Forbidden when the token is no (longer) good."""
        raise NotImplementedError
