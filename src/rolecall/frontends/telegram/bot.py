"""The connection to Telegram: a bot whose token no log, error or representation shows."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies

import httpx
import msgspec
from pydantic import SecretStr
from telegram import Bot, Update
from telegram.error import (
    BadRequest,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    TelegramError,
    TimedOut,
)

from rolecall.errors import ConfigError
from rolecall.frontends.telegram.direct import Direct
from rolecall.frontends.telegram.requests import AT_ONCE, Requests, Wait
from rolecall.models.transport import address, client_options, is_loopback, proxy_of
from rolecall.settings import Settings

logger = logging.getLogger(__name__)
TOKEN = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{8,128}", re.ASCII)
SECONDS = 5.0
"""How long a request may take to be sent, and its answer to come: shorter than what is left of a lease when a call
may still begin."""
UPDATES_SECONDS = 10.0
"""How much longer than it was asked to an answer to getUpdates may take."""
HIDDEN = "•••"
TALKATIVE = ("httpx", "httpcore", "telegram", "telegram.Bot", "telegram.request.BaseRequest", "telegram.HTTPXRequest")
"""Loggers that show addresses and parameters of requests. A filter does not reach the children of its logger."""


class QuietBot(Bot):
    """A bot that does not show its token."""

    __slots__ = ("_unreadable", "_updates")

    def __init__(self, token: str, url: str, requests: Requests, updates: Requests) -> None:
        super().__init__(token, f"{url}/bot", f"{url}/file/bot", request=requests, get_updates_request=updates)
        self._updates = updates
        self._unreadable = 0

    def __repr__(self) -> str:
        return "QuietBot()"

    @property
    def unreadable(self) -> int:
        """How many updates could not be read so far."""
        return self._unreadable

    async def initialize(self) -> None:
        """Open the connections and ask who the bot is. Raises InvalidToken for a token that Telegram does not know,
        and other TelegramErrors when it cannot be reached."""
        try:
            await super().initialize()
        except InvalidToken:
            raise InvalidToken("Telegram does not know this token") from None

    async def shutdown(self) -> None:
        """Close the connections; those of a bot that Telegram does not know, too."""
        await super().shutdown()
        await asyncio.gather(self.request.shutdown(), self._updates.shutdown())

    async def updates(self, offset: int, seconds: int, kinds: Sequence[str]) -> list[Update]:
        """The updates of these ``kinds`` from ``offset`` on, waited for so long; those before ``offset`` are
        confirmed. Raises TelegramErrors."""
        wanted = msgspec.json.encode(kinds).decode()
        asked = urlencode({"offset": offset, "timeout": seconds, "allowed_updates": wanted})
        found: Any = await self._updates.post(
            f"{self.base_url}/getUpdates?{asked}", read_timeout=UPDATES_SECONDS + seconds
        )
        return [self.read(raw) for raw in found]

    def read(self, raw: dict[str, Any]) -> Update:
        """One update. One that the library stumbles over, say as Telegram brings something new in it, is an empty one,
        so that it stops none behind it. Raises KeyError without an id."""
        number = raw["update_id"]
        try:
            return Update.de_json(raw, self)
        except Exception as error:  # the boundary: the library checks nothing
            self._unreadable += 1
            what = ", ".join(sorted(raw.keys() - {"update_id"}))
            logger.error("update %s (%s) cannot be read and is left out: %r", number, what, error)
            return Update(number)

    async def reconnect(self) -> None:
        """Open the connection for updates anew; a poll that hangs in the old one ends in an error."""
        await self._updates.shutdown()
        await self._updates.initialize()


def open_bot(settings: Settings) -> QuietBot:
    """The bot of TELEGRAM_BOT_TOKEN; nothing is asked of Telegram yet. From now on the loggers of the libraries below
    hide its token. Raises ConfigError without a token, or for one that cannot be one."""
    token = settings.telegram_bot_token.get_secret_value() if settings.telegram_bot_token else ""
    if not token:
        raise ConfigError("no TELEGRAM_BOT_TOKEN is set: get one from @BotFather and put it into .env")
    if not TOKEN.fullmatch(token):
        raise ConfigError("TELEGRAM_BOT_TOKEN=(secret): it must read like 123456789:AAE…, as @BotFather gave it")
    hide(_secrets(settings))
    url = address("TELEGRAM_API_URL", settings.telegram_api_url)
    return QuietBot(
        token, url, _requests(settings, url, SECONDS, _direct(settings, url)), _requests(settings, url, UPDATES_SECONDS)
    )


def explain(error: Exception) -> str:
    """What went wrong with Telegram in one line for an operator."""
    if isinstance(error, InvalidToken):
        return "Telegram does not know the token: see TELEGRAM_BOT_TOKEN, or get a new one from @BotFather"
    if isinstance(error, Conflict):
        return _conflict(str(error))
    if isinstance(error, Wait):
        return str(error)
    if isinstance(error, TimedOut):
        return "Telegram did not answer in time"
    if isinstance(error, Forbidden | BadRequest):
        return f"Telegram refused: {error}"
    if isinstance(error, NetworkError):
        return f"Telegram cannot be reached: {error}"
    return f"Telegram: {error}" if isinstance(error, TelegramError) else f"{type(error).__name__}: {error}"


def hide(secrets: Iterable[str]) -> None:
    """Let the loggers of the libraries below show none of ``secrets``."""
    for name in TALKATIVE:
        logger = logging.getLogger(name)
        hiding = next((one for one in logger.filters if isinstance(one, Hiding)), None)
        if hiding is None:
            hiding = Hiding()
            logger.addFilter(hiding)
        hiding.secrets.update(secrets)


class Hiding(logging.Filter):
    """Takes secrets out of log records."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, without the secrets."""
        text = shown = record.getMessage()
        for secret in self.secrets:
            shown = shown.replace(secret, HIDDEN)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


def _secrets(settings: Settings) -> set[str]:
    values = (getattr(settings, name) for name in type(settings).model_fields if name.startswith("telegram_"))
    return {value.get_secret_value() for value in values if isinstance(value, SecretStr)} - {""}


def _direct(settings: Settings, url: str) -> Direct | None:
    """The way to Telegram without a proxy; None where there is one."""
    parts, proxy = urlsplit(url), proxy_of(settings.proxy)
    if is_loopback(url):
        return Direct(url, None) if parts.scheme == "http" else None
    system = getproxies()
    if proxy not in ("NO", "SYSTEM") or (proxy == "SYSTEM" and (parts.scheme in system or "all" in system)):
        return None
    options = client_options(url, proxy, httpx.Limits)
    secure = httpx.create_ssl_context(options.get("verify", True), trust_env=options.get("trust_env", True))
    return Direct(url, secure if parts.scheme == "https" else None)


def _requests(settings: Settings, url: str, read: float, direct: Direct | None = None) -> Requests:
    options = client_options(url, proxy_of(settings.proxy), httpx.Limits)
    if not is_loopback(url):
        options["limits"] = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    return Requests(
        direct,
        read_timeout=read,
        write_timeout=SECONDS,
        connect_timeout=SECONDS,
        pool_timeout=SECONDS,
        httpx_kwargs=options,
    )


def _conflict(text: str) -> str:
    if "webhook" in text.lower():
        return "a webhook is set for this bot, so that it cannot be polled"
    return "another program polls this bot with the same token: end it, or get a token of its own from @BotFather"
