"""The connection to Telegram: a bot whose token appears in no log, error or representation."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
import msgspec
from pydantic import SecretStr
from telegram import Bot, Update
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, TelegramError, TimedOut
from telegram.request import BaseRequest, RequestData
from yarl import URL

from rolecall.bus.envelope import encodable
from rolecall.errors import ConfigError
from rolecall.settings import HIDDEN, Settings
from rolecall.transport.http_client import address, is_loopback
from rolecall.transport.proxy import proxy_of

logger = logging.getLogger(__name__)
TOKEN = re.compile(r"\d{1,20}:[A-Za-z0-9_-]{8,128}", re.ASCII)
SECONDS = 5.0
"""Limit for a request and its answer: less than what is left of a lease when a request may still begin."""
UPDATES_SECONDS = 10.0
"""How much longer than the requested wait getUpdates may take to answer."""
UPLOAD_SECONDS = 20.0
"""Limit for an upload that sets none, besides the time for its answer."""
SENDS = re.compile(r"/(send(?!ChatAction)|copy|forward)\w+$")
"""The methods that count for Telegram's limit of messages per second."""
UNREADABLE = "rolecall_unreadable"
RAW = "rolecall_raw"
TALKATIVE = ("aiohttp.client", "telegram", "telegram.Bot", "telegram.request.BaseRequest")
"""Loggers that may show addresses and parameters of requests. A filter does not apply to child loggers."""
AT_ONCE = 24
"""Concurrent requests; more would only run into Telegram's limits."""
TOO_LARGE, TOO_MANY = 413, 429
IDLE_SECONDS = 15.0
"""Connections that were idle for longer are not reused: the server may be about to close them."""


class QuietBot(Bot):
    """A bot that never shows its token."""

    __slots__ = ("_unreadable", "_updates")

    def __init__(self, token: str, url: str, requests: BotRequests, updates: BotRequests) -> None:
        super().__init__(token, f"{url}/bot", f"{url}/file/bot", request=requests, get_updates_request=updates)
        self._updates = updates
        self._unreadable = 0

    def __repr__(self) -> str:
        return "QuietBot()"

    def share(self, processes: int, per_second: int) -> None:
        """Take this process's share of the messages that ``processes`` may send ``per_second`` in all."""
        pace = self.request.pace if isinstance(self.request, BotRequests) else None
        if pace is not None:
            pace.most = max(1, per_second // processes)

    @property
    def unreadable(self) -> int:
        """How many updates could not be parsed so far."""
        return self._unreadable

    async def initialize(self) -> None:
        """Ask Telegram who the bot is. Raises InvalidToken if Telegram rejects the token, other TelegramErrors if it
        cannot be reached."""
        try:
            await super().initialize()
        except InvalidToken:
            raise InvalidToken("Telegram does not know this token") from None

    async def shutdown(self) -> None:
        """Close the connections, also if ``initialize`` failed."""
        await super().shutdown()
        await asyncio.gather(self.request.shutdown(), self._updates.shutdown())

    async def updates(self, offset: int, seconds: int, kinds: Sequence[str]) -> list[Update]:
        """The updates of ``kinds`` from ``offset`` on; waits up to ``seconds`` for one and confirms those before
        ``offset``. Raises TelegramErrors."""
        wanted = msgspec.json.encode(kinds).decode()
        asked = urlencode({"offset": offset, "timeout": seconds, "allowed_updates": wanted})
        found: Any = await self._updates.post(
            f"{self.base_url}/getUpdates?{asked}", read_timeout=UPDATES_SECONDS + seconds
        )
        return [self.read(raw) for raw in found]

    def read(self, raw: dict[str, Any]) -> Update:
        """Parse one update. If that fails, such as for something new in the Bot API, it becomes an empty update with
        the reason and the original in its ``api_kwargs``, UNREADABLE and RAW. Raises KeyError without an id."""
        number = raw["update_id"]
        try:
            return Update.de_json(_encodable(raw), self)
        except Exception as error:  # the boundary: the library validates nothing
            self._unreadable += 1
            what = ", ".join(sorted(raw.keys() - {"update_id"}))
            return Update(number, api_kwargs={UNREADABLE: f"{what} cannot be read: {error!r}", RAW: raw})

    async def reconnect(self) -> None:
        """Close the connection for updates; a poll that hangs in it fails, and the next one opens a new connection."""
        await self._updates.shutdown()


def _encodable(value: Any) -> Any:
    """JSON with every text in valid Unicode: one half of a surrogate pair could not be stored."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {name: _encodable(one) for name, one in value.items()}
    return [_encodable(one) for one in value] if isinstance(value, list) else value


def open_bot(settings: Settings) -> QuietBot:
    """The bot of TELEGRAM_BOT_TOKEN, not connected yet. From now on, the libraries' loggers hide its token. Raises
    ConfigError for a missing or malformed token."""
    token = settings.telegram_bot_token.get_secret_value() if settings.telegram_bot_token else ""
    if not token:
        raise ConfigError("no TELEGRAM_BOT_TOKEN is set: get one from @BotFather and put it into .env")
    if not TOKEN.fullmatch(token):
        raise ConfigError("TELEGRAM_BOT_TOKEN is invalid: expected one such as 123456789:AAE… from @BotFather")
    hide_secrets(_secrets(settings))
    url = address("TELEGRAM_API_URL", settings.telegram_api_url)
    proxy = _proxy(settings, url)
    requests = BotRequests(url, proxy, SECONDS, Pace(settings.telegram_per_second))
    return QuietBot(token, url, requests, BotRequests(url, proxy, UPDATES_SECONDS))


def explain(error: Exception) -> str:
    """The error in one line for operators."""
    if isinstance(error, InvalidToken):
        return "Telegram does not know the token: see TELEGRAM_BOT_TOKEN, or get a new one from @BotFather"
    if isinstance(error, Conflict):
        return _conflict(str(error))
    if isinstance(error, FloodWait):
        return str(error)
    if isinstance(error, TimedOut):
        return "Telegram did not answer in time"
    if isinstance(error, Forbidden | BadRequest):
        return f"Telegram refused: {error}"
    if isinstance(error, NetworkError):
        return f"Telegram cannot be reached: {error}"
    return f"Telegram: {error}" if isinstance(error, TelegramError) else f"{type(error).__name__}: {error}"


def hide_secrets(secrets: Iterable[str]) -> None:
    """Remove ``secrets`` from the records of the libraries' loggers."""
    for name in TALKATIVE:
        logger = logging.getLogger(name)
        hiding = next((one for one in logger.filters if isinstance(one, SecretFilter)), None)
        if hiding is None:
            hiding = SecretFilter()
            logger.addFilter(hiding)
        hiding.secrets.update(secrets)


class SecretFilter(logging.Filter):
    """Removes secrets from log records."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass every record, without the secrets."""
        text = shown = record.getMessage()
        for secret in self.secrets:
            shown = shown.replace(secret, HIDDEN)
        if shown != text:
            record.msg, record.args = shown, ()
        return True


def _secrets(settings: Settings) -> set[str]:
    values = (getattr(settings, name) for name in type(settings).model_fields if name.startswith("telegram_"))
    return {value.get_secret_value() for value in values if isinstance(value, SecretStr)} - {""}


def _proxy(settings: Settings, url: str) -> str | None:
    """The proxy for ``url``: PROXY, or the one of the environment; None on this machine or without a proxy."""
    proxy = proxy_of(settings.proxy, url)
    if proxy == "NO" or is_loopback(url):
        return None
    if proxy != "SYSTEM":
        return proxy
    parts, system = urlsplit(url), getproxies()
    found = system.get(parts.scheme) or system.get("all")
    if not found or proxy_bypass(parts.hostname or ""):
        return None
    if found.startswith("socks"):
        raise ConfigError("Telegram cannot use the SOCKS proxy of the environment: set PROXY to an HTTP proxy, or NO")
    return found if "://" in found else f"http://{found}"


def _conflict(text: str) -> str:
    if "webhook" in text.lower():
        return "a webhook is set for this bot, so that it cannot be polled"
    return "another program polls this bot with the same token: stop it, or get a separate token from @BotFather"


class FloodWait(TelegramError):
    """Telegram asks to wait for ``seconds`` (429). The library's RetryAfter warns when its seconds are read."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Telegram asks to wait {seconds:g} s")
        self.seconds = seconds


class _Answer(msgspec.Struct):
    ok: bool


class _Parameters(msgspec.Struct):
    retry_after: float


class _Refusal(msgspec.Struct):
    parameters: _Parameters


class Pace:
    """At most ``most`` calls begin within a second, in order."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._begun: deque[float] = deque()
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return when the next call may begin."""
        async with self._turn:
            while len(self._begun) >= self.most:
                if (left := self._begun[0] + 1 - time.monotonic()) <= 0:
                    self._begun.popleft()
                else:
                    await asyncio.sleep(left)
            self._begun.append(time.monotonic())


class BotRequests(BaseRequest):
    """Requests to Telegram, AT_ONCE at a time, in order. ``sendChatAction`` is not worth waiting for: it raises
    TimedOut instead. Raises FloodWait in place of RetryAfter.

    An answer that is not Telegram's is a NetworkError.

    They use aiohttp because httpx, python-telegram-bot's default, needs two to five times the CPU for each request.
    """

    __slots__ = ("_proxy", "_seconds", "_secure", "_session", "_slots", "pace")

    def __init__(self, url: str, proxy: str | None, seconds: float, pace: Pace | None = None) -> None:
        self._proxy, self._seconds, self.pace = proxy, seconds, pace
        # httpx's context trusts certifi's authorities, or those of SSL_CERT_FILE, on every system.
        self._secure = httpx.create_ssl_context() if urlsplit(url).scheme == "https" else True
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)

    @property
    def read_timeout(self) -> float:
        """See BaseRequest."""
        return self._seconds

    async def initialize(self) -> None:
        """See BaseRequest. Connections open with the first request."""

    async def shutdown(self) -> None:
        """Close all connections; requests in progress fail."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def do_request(
        self,
        url: str,
        method: str,
        request_data: RequestData | None = None,
        read_timeout: Any = BaseRequest.DEFAULT_NONE,
        write_timeout: Any = BaseRequest.DEFAULT_NONE,
        connect_timeout: Any = BaseRequest.DEFAULT_NONE,
        pool_timeout: Any = BaseRequest.DEFAULT_NONE,
    ) -> tuple[int, bytes]:
        """See BaseRequest."""
        if self._slots.locked() and url.endswith("/sendChatAction"):
            raise TimedOut("skipped: others wait")
        read, upload = _or(read_timeout, self._seconds), request_data is not None and request_data.contains_files
        timeout = aiohttp.ClientTimeout(read + (_or(write_timeout, UPLOAD_SECONDS) if upload else 0))
        if method == "GET":  # a file, whose download may take longer than an answer
            timeout = aiohttp.ClientTimeout(sock_connect=SECONDS, sock_read=read)
        if self.pace is not None and SENDS.search(url):
            await self.pace.wait()
        async with self._slots:
            try:
                status, payload = await self._exchange(url, method, _form(request_data), timeout)
            except TimeoutError:
                raise TimedOut from None
            except (aiohttp.ClientError, OSError) as error:
                raise NetworkError(f"{type(error).__name__}: {error}") from None
        if status == TOO_MANY:
            raise FloodWait(_seconds(payload))
        if method != "GET" and status != TOO_LARGE and not _is_answer(payload):
            raise NetworkError(f"a proxy or another server answered in its place, with HTTP status {status}")
        return status, payload

    async def _exchange(
        self, url: str, method: str, form: aiohttp.FormData | None, timeout: aiohttp.ClientTimeout
    ) -> tuple[int, bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS, ssl=self._secure)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), skip_auto_headers=["Accept-Encoding"]
            )
        request = self._session.request(
            method, URL(url, encoded=True), data=form, timeout=timeout, proxy=self._proxy, allow_redirects=False
        )
        async with request as response:
            return response.status, await response.read()


def _form(data: RequestData | None) -> aiohttp.FormData | None:
    """The parameters as a form, with files as parts."""
    if data is None:
        return None
    form = aiohttp.FormData(data.json_parameters)
    if data.contains_files:
        for name, (filename, content, media_type) in data.multipart_data.items():
            form.add_field(name, content, filename=filename, content_type=media_type)
    return form


def _or(timeout: Any, otherwise: float) -> float:
    """``timeout``, if the caller set one."""
    return float(timeout) if isinstance(timeout, int | float) else otherwise


def _is_answer(payload: bytes) -> bool:
    """Whether this is what Telegram answers to a method; a page with status 401, 403 or 404 refuses nothing."""
    try:
        msgspec.json.decode(payload, type=_Answer)
    except msgspec.MsgspecError:
        return False
    return True


def _seconds(payload: bytes) -> float:
    """How long a refusal asks to wait; one second if it does not tell."""
    try:
        return msgspec.json.decode(payload, type=_Refusal).parameters.retry_after
    except msgspec.MsgspecError:
        return 1.0
