"""Updates of the bot: by long polling with a watchdog, or by webhook."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive as ASGIReceive
from starlette.types import Scope, Send
from telegram import Update, WebhookInfo
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, TelegramError

from rolecall.errors import ConfigError
from rolecall.frontends.telegram.bot import FloodWait, QuietBot, explain
from rolecall.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
WATCHDOG_SECONDS = 120.0
WEBHOOK_SECONDS = 60.0
"""How often Telegram is asked whether it still uses the webhook."""
LONGEST_PAUSE = 30.0
Receive = Callable[[Update], Awaitable[None]]
ALLOWED = ("message", "edited_message", "callback_query", "my_chat_member")
"""The kinds of updates the bot receives."""
PATIENCE = 0.5
"""Seconds after which more updates are requested while some, such as a large file, are still being received."""
LONGEST_POLL_PAUSE = 10.0
SECRET_HEADER = "x-telegram-bot-api-secret-token"
READ_SECONDS = 10.0
LEAVE_SECONDS = 5.0
MAX_BYTES = 1024 * 1024
MAX_CONNECTIONS = 200


@dataclass
class Updates:
    """Passes the updates of ``bot`` to ``receive``. ``tell`` receives lines for operators about problems."""

    bot: QuietBot
    receive: Receive
    settings: Settings
    tell: Callable[[str], None]
    watchdog_seconds: float = WATCHDOG_SECONDS
    webhook_seconds: float = WEBHOOK_SECONDS
    webhook: Webhook | None = None
    """Set while this process receives updates by webhook."""

    async def run(self) -> None:
        """Receive updates until cancelled; temporary failures are retried. Raises InvalidToken or Forbidden when
        Telegram rejects the token, ConfigError for an invalid webhook."""
        if self.settings.telegram_webhook_url:
            await self._receive_by_webhook()
        else:
            await self._poll()

    async def _poll(self) -> None:
        pause = 0.0
        while True:
            await self._delete_webhook()
            poller = Poller(self.bot, self.receive)
            began = poller.last
            try:
                await self._poll_until_silent(poller)
                self.tell(f"Telegram was silent for {self.watchdog_seconds:g} s: reconnecting")
                await self.bot.reconnect()
            except Conflict as error:
                self.tell(f"no updates, retrying: {explain(error)}")
                pause = 1.0 if poller.last > began else min(LONGEST_PAUSE, pause * 2 or 1.0)
                await asyncio.sleep(pause)

    async def _poll_until_silent(self, poller: Poller) -> None:
        """Poll until Telegram has been silent for ``watchdog_seconds``. Raises what Poller.run raises."""
        polling = asyncio.create_task(poller.run(), name="rolecall telegram poller")
        try:
            while time.monotonic() - poller.last < self.watchdog_seconds:
                done, _ = await asyncio.wait([polling], timeout=self.watchdog_seconds / 8)
                if done:
                    return polling.result()
        finally:
            polling.cancel()
            await asyncio.wait([polling])

    async def _delete_webhook(self) -> None:
        """Delete a webhook that another program left, because it would block polling. Pending updates are kept."""
        info = await self._retry(self.bot.get_webhook_info)
        if info.url:
            await self._retry(self.bot.delete_webhook)
            self.tell("a webhook was still set for the bot; deleted it, because this process polls")

    async def _receive_by_webhook(self) -> None:
        url, secret = self.settings.telegram_webhook_url or "", self.settings.telegram_webhook_secret
        if secret is None:
            raise ConfigError("TELEGRAM_WEBHOOK_SECRET is not set: without it anyone could send updates")
        hook = Webhook(
            self.bot, self.receive, secret=secret.get_secret_value(), host=self.settings.telegram_webhook_host,
            port=self.settings.telegram_webhook_port,
        )  # fmt: skip
        await self._listen(hook)
        self.webhook = hook
        serving = asyncio.create_task(hook.run(), name="rolecall telegram webhook")
        keeping = asyncio.create_task(self._keep_webhook(url, secret.get_secret_value()), name="rolecall telegram hook")
        try:
            await asyncio.wait([serving, keeping], return_when=asyncio.FIRST_COMPLETED)
            await (keeping if keeping.done() else serving)
        finally:
            self.webhook = None
            for task in (keeping, serving):
                task.cancel()
            await asyncio.wait([keeping, serving])

    async def _keep_webhook(self, url: str, secret: str) -> None:
        """Set the webhook, and again when another program has changed or deleted it; tell of updates that Telegram
        cannot bring. Raises InvalidToken or Forbidden."""

        async def register() -> WebhookInfo:
            await self.bot.set_webhook(url, allowed_updates=ALLOWED, secret_token=secret)
            return await self.bot.get_webhook_info()

        known = await self._retry(register)
        while True:
            await asyncio.sleep(self.webhook_seconds)
            try:
                found = await self.bot.get_webhook_info()
            except (InvalidToken, Forbidden):
                raise
            except TelegramError as error:
                logger.info("cannot check whether the webhook is still set: %s", explain(error))
                continue
            if found.url != known.url:
                self.tell("another program changed the webhook of the bot; it is set again")
                found = await self._retry(register)
            elif found.pending_update_count and found.last_error_date != known.last_error_date:
                self.tell(f"Telegram cannot bring updates to the webhook: {found.last_error_message}")
            known = found

    async def _listen(self, hook: Webhook) -> None:
        """Listen for Telegram; retried, because a predecessor may still be using the port."""
        pause = 0.5
        while True:
            try:
                return await hook.start()
            except OSError as error:
                where = f"TELEGRAM_WEBHOOK_HOST and _PORT, {hook.host}:{hook.port}"
                self.tell(f"no updates, retrying: {where}: {error.strerror}")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _retry(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Await ``ask`` until Telegram answers; returns the answer."""
        pause = 0.5
        while True:
            try:
                return await ask()
            except (InvalidToken, Forbidden):
                raise
            except TelegramError as error:
                self.tell(f"no updates, retrying: {explain(error)}")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)


class Poller:
    """Polls for updates and passes each to ``receive``, several at a time. ``last`` is the monotonic time of Telegram's
    last answer, for the watchdog."""

    def __init__(self, bot: QuietBot, receive: Receive, *, seconds: int = 25) -> None:
        self.bot = bot
        self.receive = receive
        self.seconds = seconds
        self.last = time.monotonic()
        self._offset = 0
        self._open: dict[int, asyncio.Task[None]] = {}
        """Updates that are not confirmed yet, by id."""
        self._pause = 0.0

    async def run(self) -> None:
        """Poll until cancelled; temporary failures (network, 429, 5xx) are retried.

        Updates that are still being received when it ends are delivered again to the next poll. Raises Conflict when
        another program polls or a webhook is set, InvalidToken or Forbidden when Telegram rejects the token.
        """
        try:
            while True:
                for update in await self._ask():
                    if update.update_id not in self._open:
                        self._open[update.update_id] = asyncio.create_task(self._take(update), name="telegram update")
                await self._confirm()
        finally:
            await self._stop()

    async def _take(self, update: Update) -> None:
        await self.receive(update)

    async def _confirm(self) -> None:
        """Wait up to PATIENCE for open updates, then confirm those without an open one before them."""
        waiting = [task for task in self._open.values() if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE)
        for number in sorted(self._open):
            if not self._open[number].done():
                break
            self._open.pop(number).result()
            self._offset = number + 1

    async def _ask(self) -> list[Update]:
        """The next updates; none after a temporary failure. Open updates are returned again, so while there are any,
        this does not wait for new ones."""
        try:
            updates = await self.bot.updates(self._offset, 0 if self._open else self.seconds, ALLOWED)
        except (Conflict, InvalidToken, Forbidden):
            raise
        except FloodWait as error:
            await self._back_off(error, error.seconds)
        except TelegramError as error:
            await self._back_off(error, 0)
        else:
            self.last, self._pause = time.monotonic(), 0.0
            return updates
        return []

    async def _back_off(self, error: TelegramError, seconds: float) -> None:
        if not self._pause:
            passing = isinstance(error, NetworkError) and not isinstance(error, BadRequest)
            logger.log(logging.INFO if passing else logging.WARNING, "no updates at the moment: %s", explain(error))
        self._pause = min(LONGEST_POLL_PAUSE, self._pause * 2 or 0.25)
        await asyncio.sleep(max(self._pause, seconds))

    async def _stop(self) -> None:
        for task in self._open.values():
            task.cancel()
        if self._open:
            await asyncio.wait(self._open.values())
        self._open.clear()


class Webhook:
    """Receives updates as a Starlette route. Answers 200 once ``receive`` has returned, and 403 to a caller that does
    not know ``secret``.

    ``run`` serves the route at ``host`` and ``port``, 0 for any free one; another ASGI application may serve
    ``route()`` as well. Any path is accepted there: a proxy that terminates TLS may change it.
    """

    def __init__(self, bot: QuietBot, receive: Receive, *, secret: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.bot, self.receive, self.host, self.port = bot, receive, host, port
        self._secret = secret.encode()
        self._listener: socket.socket | None = None
        self._open: dict[int, asyncio.Task[None]] = {}

    def route(self, path: str = "/{path:path}") -> Route:
        """The route for Telegram's requests."""
        return Route(path, self, methods=None)

    async def start(self) -> None:
        """Listen; ``port`` is then the one in use. Raises OSError if it is taken."""
        self._listener = socket.create_server((self.host, self.port), backlog=MAX_CONNECTIONS)
        self.port = self._listener.getsockname()[1]

    async def run(self) -> None:
        """Serve until cancelled; updates that are being received are finished first."""
        if self._listener is None:
            await self.start()
        from rolecall.frontends.uvicorn_server import uvicorn_server

        server = uvicorn_server(
            Starlette(routes=[self.route()]), limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=5,
            timeout_graceful_shutdown=int(LEAVE_SECONDS),
        )  # fmt: skip
        assert self._listener is not None
        serving = asyncio.create_task(server.serve([self._listener]), name="rolecall telegram webhook server")
        try:
            await asyncio.shield(serving)
        finally:
            await self._finish_updates()
            server.should_exit = True
            await asyncio.wait([serving])

    async def __call__(self, scope: Scope, receive: ASGIReceive, send: Send) -> None:
        """Answer one request of Telegram."""
        status = await self._status(Request(scope, receive))
        await Response(status_code=status, headers={"Connection": "close"})(scope, receive, send)

    async def _status(self, request: Request) -> int:
        given = request.headers.get(SECRET_HEADER, "").encode("latin-1")
        if not hmac.compare_digest(given, self._secret):
            return 403
        if request.method != "POST":
            return 405
        body = bytearray()
        try:
            async with asyncio.timeout(READ_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        return 413
        except TimeoutError:
            return 408
        except ClientDisconnect:
            return 400
        update = self._read(bytes(body))
        if update is None:
            return 400
        await self._received(update)
        return 200

    def _read(self, body: bytes) -> Update | None:
        try:
            return self.bot.read(msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
            logger.warning("a request to the webhook was not an update: %s", type(error).__name__)
            return None

    async def _received(self, update: Update) -> None:
        """Wait until the update is received. A client that disconnects ends nothing, and an update that arrives again
        while the first is being received is that one."""
        task = self._open.get(update.update_id)
        if task is None:
            task = asyncio.create_task(self._take(update), name="telegram update")
            self._open[update.update_id] = task
            task.add_done_callback(lambda _: self._open.pop(update.update_id, None))
        await asyncio.shield(task)

    async def _take(self, update: Update) -> None:
        await self.receive(update)

    async def _finish_updates(self) -> None:
        if self._open:
            await asyncio.wait(self._open.values(), timeout=LEAVE_SECONDS)
        for task in self._open.values():
            task.cancel()
        await asyncio.gather(*self._open.values(), return_exceptions=True)
