"""Updates that Telegram brings: a small HTTP server behind whatever ends TLS."""

from __future__ import annotations

from telegram import Bot

from rolecall.frontends.telegram.poller import Receive


class Webhook:
    """Answers 200 only when ``receive`` returned; who does not know ``secret`` is answered 403 and costs nothing."""

    def __init__(self, bot: Bot, receive: Receive, *, secret: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.bot, self.receive, self.secret, self.host, self.port = bot, receive, secret, host, port

    async def start(self) -> None:
        """Listen; ``port`` is then the one in use."""
        raise NotImplementedError

    async def run(self) -> None:
        """Serve until cancelled; what is being received is finished first."""
        raise NotImplementedError
