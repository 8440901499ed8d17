"""What every request passes before a route sees it: Host, Origin, limits, time, and the headers of the answer.

Pure ASGI, around everything else. A body is read whole here, up to its limit, so that no route ever waits for one.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.frontends.http.auth import COOKIE, SAFE_METHODS
from rolecall.frontends.sockets import LOOPBACK, is_local
from rolecall.settings import Settings

BODY_BYTES = 256 * 1024
HEADER_BYTES = 16 * 1024
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is thrown away, so that its sender can read why."""
UNCOUNTED = ("/health", "/static/")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""On every answer that does not set them itself."""
CALLERS = 4096
"""Remembered at most; idle ones are forgotten first."""


@dataclass
class Refusal(Exception):
    """What a request is answered with instead of by a route."""

    status: int
    detail: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Guard:
    """Around ``app``, which is served at ``host``."""

    def __init__(self, app: ASGIApp, settings: Settings, host: str) -> None:
        self._app = app
        self._settings = settings
        self._hosts = _Hosts(host, listed(settings.http_hosts))
        self._origins = listed(settings.http_origins)
        self._pace = Pace(settings.http_requests, settings.http_requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        guarded = _with_headers(send)
        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except Refusal as refusal:
            return await _refuse(refusal, scope, receive, guarded)
        if scope["path"].startswith(UNCOUNTED):
            return await self._app(scope, _replay(body, receive), guarded)
        who = _credential(scope)
        if (wait := self._pace.enter(who)) is not None:
            detail = f"Too many requests with this key: the next one is welcome in {wait} s."
            too_many = Refusal(429, detail, "rate_limit_exceeded", {"retry-after": str(wait)})
            return await _refuse(too_many, scope, receive, guarded)
        try:
            await self._app(scope, _replay(body, receive), guarded)
        finally:
            self._pace.leave(who)

    def _check(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise Refusal(431, f"The headers of a request may have {HEADER_BYTES // 1024} kB.", "headers_too_large")
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._hosts.fits(hosts[0]):
            names = ", ".join(hosts)[:100] or "(none)"
            raise Refusal(403, f"Host {names!r} is not served here: HTTP_HOSTS names what is.", "forbidden_host")
        origins = _values(scope, b"origin")
        foreign = [origin for origin in origins if not self._own(origin, hosts[0])]
        sites = _values(scope, b"sec-fetch-site")
        unsafe = scope["method"] not in SAFE_METHODS
        if foreign or (unsafe and not origins and sites and sites[0] not in ("same-origin", "none")):
            raise Refusal(403, "Other web pages may not use this server: HTTP_ORIGINS names those that may.",
                          "forbidden_origin")  # fmt: skip

    def _own(self, origin: str, host: str) -> bool:
        return origin in self._origins or _without_default_port(origin) == _without_default_port(f"//{host}")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. One that is too large is refused as soon as that is known, one too slow when time is up."""
        announced = next(iter(_values(scope, b"content-length")), "0")
        if announced.isdigit() and int(announced) > BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.http_read_seconds):
                more = True
                while more:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message["type"] == "http.request" and message.get("more_body", False)
                    if len(body) > BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            detail = f"The request did not come whole within {self._settings.http_read_seconds:g} s."
            raise Refusal(408, detail, "request_timeout") from None
        return bytes(body)


class _Hosts:
    """Which names and addresses a server at ``host`` is rightly called by. An address in figures cannot be the name
    of another's site, hence is fine wherever the server is open to the network."""

    def __init__(self, host: str, more: Iterable[str]) -> None:
        self._local = is_local(host)
        self._names = {*LOOPBACK, host.lower(), *(name.lower() for name in more)}
        if not self._local:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def fits(self, given: str) -> bool:
        name = _host_name(given)
        return name in self._names or "*" in self._names or (not self._local and _is_address(name))


def _host_name(given: str) -> str:
    try:
        return (urlsplit(f"//{given}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_default_port(address: str) -> tuple[str, int | None] | None:
    """Host and port; the port that goes without saying is None. What stands before a proxy may speak https where we
    hear http, so the scheme is left out."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    return (parts.hostname.lower(), None if port in (80, 443) else port) if parts.hostname else None


def _too_large() -> Refusal:
    return Refusal(413, f"A request may have {BODY_BYTES // 1024} kB.", "request_too_large", {"connection": "close"})


def listed(text: str) -> list[str]:
    """The parts of a setting that lists by comma."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _credential(scope: Scope) -> str:
    """Whom a request is counted for: its key or login, else its address. Not yet known to be real."""
    if found := _values(scope, b"authorization"):
        return found[0]
    login = cookie_parser("; ".join(_values(scope, b"cookie"))).get(COOKIE)
    return login or str((scope.get("client") or ("",))[0])


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` with the body that was read, once; then what really comes: the end of the connection."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            set_already = {name.lower() for name, _ in message.get("headers", ())}
            missing = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in set_already]
            message = {**message, "headers": [*message.get("headers", ()), *missing]}
        await send(message)

    return guarded


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    content_type, body = _answer(refusal, scope["path"])
    fields = {"content-type": content_type, "content-length": str(len(body)), **refusal.headers}
    if refusal.status in (408, 413, 431):
        fields["connection"] = "close"
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if refusal.status == 413:
        await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


def _answer(refusal: Refusal, path: str) -> tuple[str, bytes]:
    """As the routes of ``path`` say what went wrong: OpenAI's way, or problem+json."""
    if path.startswith("/v1/"):
        error = {"message": refusal.detail, "type": "invalid_request_error", "param": None, "code": refusal.code}
        return "application/json", json.dumps({"error": error}).encode()
    title = HTTPStatus(refusal.status).phrase
    problem = {"type": "about:blank", "title": title, "status": refusal.status, "detail": refusal.detail}
    return "application/problem+json", json.dumps({**problem, "code": refusal.code}).encode()


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        return


@dataclass
class _Caller:
    open: int = 0
    tokens: float = 0.0
    at: float = 0.0


class Pace:
    """Lets each caller have ``at_once`` requests open and ``per_minute`` begun, in bursts of up to a tenth of that."""

    def __init__(self, at_once: int, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._rate = per_minute / 60
        self._burst = max(1.0, per_minute / 10)
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def enter(self, who: str) -> int | None:
        """Begin a request of ``who``; or the seconds after which it may try again, when that is too much now."""
        caller, now = self._caller(who), self._clock()
        caller.tokens = min(self._burst, caller.tokens + (now - caller.at) * self._rate)
        caller.at = now
        if caller.open >= self._at_once:
            return 1
        if caller.tokens < 1:
            return max(1, math.ceil((1 - caller.tokens) / self._rate))
        caller.tokens -= 1
        caller.open += 1
        return None

    def leave(self, who: str) -> None:
        """End a request that was let in."""
        self._caller(who).open -= 1

    def _caller(self, who: str) -> _Caller:
        name = hashlib.sha256(who.encode("utf-8", "surrogatepass")).hexdigest()
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(0, self._burst, self._clock())
            self._forget()
        self._callers.move_to_end(name)
        return caller

    def _forget(self) -> None:
        if len(self._callers) <= CALLERS:
            return
        idle = next((name for name, caller in self._callers.items() if not caller.open), None)
        if idle is not None:
            del self._callers[idle]
