"""The connection to Telegram: a bot whose token no log, error or representation shows."""

from __future__ import annotations

import asyncio
import logging
import re
import select
import ssl
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies

import anyio
import h11
import httpx
import msgspec
from anyio.abc import ByteStream, SocketAttribute
from h11 import Connection as Http
from pydantic import SecretStr
from telegram import Bot, Update
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, NetworkError, TelegramError, TimedOut
from telegram.request import HTTPXRequest, RequestData

from rolecall.errors import ConfigError
from rolecall.settings import Settings, address, client_options, is_loopback, proxy_of

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
AT_ONCE = 24
"""Requests on their way at once. More would only wait in Telegram's own limits, and each would slow down all others:
the library below goes through all of its connections for every request."""
TOO_MANY = 429
READ_BYTES = 65_536
IDLE_SECONDS = 15.0
"""A connection unused for longer may be just about to be closed by the other side."""
FAILURES = (OSError, ssl.SSLError, h11.ProtocolError, anyio.ClosedResourceError, anyio.BrokenResourceError,
            anyio.EndOfStream)  # fmt: skip
"""What ``Direct.post`` raises when the server cannot be reached, or breaks off; TimeoutError is one of them."""


class QuietBot(Bot):
    """A bot that does not show its token."""

    __slots__ = ("_unreadable", "_updates")

    def __init__(self, token: str, url: str, requests: BotRequests, updates: BotRequests) -> None:
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
    if isinstance(error, FloodWait):
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
        hiding = next((one for one in logger.filters if isinstance(one, SecretFilter)), None)
        if hiding is None:
            hiding = SecretFilter()
            logger.addFilter(hiding)
        hiding.secrets.update(secrets)


class SecretFilter(logging.Filter):
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


def _requests(settings: Settings, url: str, read: float, direct: Direct | None = None) -> BotRequests:
    options = client_options(url, proxy_of(settings.proxy), httpx.Limits)
    if not is_loopback(url):
        options["limits"] = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    return BotRequests(
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
    return "another program polls this bot with the same token: stop it, or get a separate token from @BotFather"


class FloodWait(TelegramError):
    """Raised when Telegram asks to wait for so many ``seconds``; the library's own error warns whoever reads them."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Telegram asks to wait {seconds:g} s")
        self.seconds = seconds


class _Parameters(msgspec.Struct):
    retry_after: float


class _Refusal(msgspec.Struct):
    parameters: _Parameters


class BotRequests(HTTPXRequest):
    """Requests to Telegram, a few at a time; the others wait in the order they came, for as long as it takes. That the
    bot is typing is not said while others wait: raises TimedOut. Raises FloodWait in place of RetryAfter."""

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
            raise FloodWait(_seconds(payload))
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


@dataclass
class Kept:
    """A connection between two requests."""

    stream: ByteStream
    http: Http
    since: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it may be used once more: not too old, and the other side has said nothing meanwhile, not even that
        it closes."""
        if time.monotonic() - self.since > IDLE_SECONDS:
            return False
        readable, _, _ = select.select([self.stream.extra(SocketAttribute.raw_socket)], [], [], 0)
        return not readable


class Direct:
    """The server of ``url``; ``secure`` holds the authorities of its certificate, for https. Connections are kept for
    the next request."""

    def __init__(self, url: str, secure: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._host, self._secure = parts.hostname or "", secure
        self._port = parts.port or (443 if secure else 80)
        self._header = parts.netloc.encode("ascii")
        self.kept: deque[Kept] = deque()

    async def post(self, url: str, body: bytes, *, connect: float, answer: float) -> tuple[int, bytes]:
        """The status and the content of the answer to a form. Seconds: to ``connect``, and until the whole ``answer``
        is there. Raises one of FAILURES."""
        connection = await self._connection(connect)
        whole = False
        try:
            async with asyncio.timeout(answer):
                status, content = await self._exchange(connection, urlsplit(url).path, body)
            whole = True
        finally:
            if whole and connection.http.our_state is h11.DONE is connection.http.their_state:
                connection.http.start_next_cycle()
                connection.since = time.monotonic()
                self.kept.append(connection)
            else:
                await anyio.aclose_forcefully(connection.stream)
        return status, content

    async def aclose(self) -> None:
        """Close what is kept."""
        while self.kept:
            await anyio.aclose_forcefully(self.kept.pop().stream)

    async def _connection(self, seconds: float) -> Kept:
        while self.kept:
            kept = self.kept.pop()
            if kept.good:
                return kept
            await anyio.aclose_forcefully(kept.stream)
        async with asyncio.timeout(seconds):
            if self._secure is None:
                stream: ByteStream = await anyio.connect_tcp(self._host, self._port)
            else:
                stream = await anyio.connect_tcp(
                    self._host, self._port, ssl_context=self._secure, tls_standard_compatible=False
                )
        return Kept(stream, Http(h11.CLIENT))

    async def _exchange(self, connection: Kept, path: str, body: bytes) -> tuple[int, bytes]:
        http, stream = connection.http, connection.stream
        head = h11.Request(
            method=b"POST", target=path.encode("ascii"),
            headers=[
                (b"Host", self._header), (b"Content-Length", b"%d" % len(body)),
                (b"Content-Type", b"application/x-www-form-urlencoded"),
            ],
        )  # fmt: skip
        parts = [http.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        await stream.send(b"".join(part for part in parts if part))
        status, content = 0, bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await _received(stream))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(content)


async def _received(stream: ByteStream) -> bytes:
    """What comes next; nothing when the other side has closed."""
    try:
        return await stream.receive(READ_BYTES)
    except anyio.EndOfStream:
        return b""
