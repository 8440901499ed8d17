"""From an update to what becomes of it: a turn, a command, a pressed button, or a clear refusal."""

from __future__ import annotations

from telegram import Update


class Receiver:
    """Takes updates in. Those of one chat follow each other, those of different chats do not wait for each other."""

    async def receive(self, update: Update) -> None:
        """Return when what ``update`` asks is safe in the server (or refused, or not for us): its offset may be raised.

        Waits and tries again while the server is away. Raises nothing else than CancelledError.
        """
        raise NotImplementedError
