"""What every request passes before a route sees it: Host and Origin checks, size, time and rate limits.

Pure ASGI, around all routes. It reads the whole body, up to its limit, so that no route waits for a slow client;
only forms with a file are read by their routes.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request, cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from rolecall.errors import ServerError
from rolecall.frontends.http.auth import COOKIE, SAFE_METHODS, identified, require
from rolecall.frontends.http.body import BodyReader, close_uploads
from rolecall.frontends.http.problems import OLLAMA_PREFIX, Problem, text
from rolecall.frontends.sockets import LOOPBACK, host_name, is_local
from rolecall.settings import Settings, listed
from rolecall.tracing.traceparent import HEADER, TRACEPARENT, parsed

HEADER_BYTES = 16 * 1024
MAX_CALLERS = 4096
"""Callers whose rate is remembered; idle ones are forgotten first."""
UNLIMITED_PATHS = ("/health", "/static/")


class RequestGuard:
    """ASGI middleware around ``app``, for a server that listens on ``host``."""

    def __init__(self, app: ASGIApp, settings: Settings, host: str) -> None:
        self._app = app
        self._bodies = BodyReader(settings, lambda scope: require(Request(scope)))
        self._hosts = _Hosts(host, listed(settings.http_hosts))
        self._origins = listed(settings.http_origins)
        self._rates = RateLimit(settings.http_requests, settings.http_requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Raises Problem for one that no route is to see."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._check_headers(scope)
        if scope["path"].startswith(OLLAMA_PREFIX):  # Ollama takes JSON whatever it is called, as curl sends it
            others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        if (given := _header_values(scope, HEADER.encode())) and parsed(given[0]):
            TRACEPARENT.set(given[0])  # of this request's task
        try:
            await self._pass_on(scope, await self._bodies.received(scope, receive), send)
        finally:
            close_uploads(scope)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(UNLIMITED_PATHS):
            return await self._app(scope, receive, send)
        caller = await _caller_of(scope)
        if (wait := self._rates.enter(caller)) is not None:
            raise Problem(429, text("too_many_requests", seconds=wait), headers={"retry-after": str(wait)})
        try:
            await self._app(scope, receive, send)
        finally:
            self._rates.leave(caller)

    def _check_headers(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            raise Problem(431, text("headers_too_large", limit=HEADER_BYTES // 1024), "headers_too_large")
        if any(coding.lower() not in ("", "identity") for coding in _header_values(scope, b"content-encoding")):
            raise Problem(415, text("encoded_body"), "unsupported_media_type", headers={"accept-encoding": "identity"})
        hosts = _header_values(scope, b"host")
        # Only a request by HTTP/1.0 has none. Browsers always send one, so it cannot be DNS rebinding.
        if len(hosts) > 1 or not all(map(self._hosts.allows, hosts)):
            names = ", ".join(hosts)[:100] or "(none)"
            raise Problem(403, text("forbidden_host", host=repr(names)), "forbidden_host")
        origins = _header_values(scope, b"origin")
        foreign = [origin for origin in origins if not any(self._is_allowed_origin(origin, host) for host in hosts)]
        sites = _header_values(scope, b"sec-fetch-site")
        unsafe = scope["method"] not in SAFE_METHODS
        if foreign or (unsafe and not origins and sites and sites[0] not in ("same-origin", "none")):
            raise Problem(403, text("forbidden_origin"), "forbidden_origin")

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        return origin in self._origins or _without_default_port(origin) == _without_default_port(f"//{host}")


class _Hosts:
    """The Host headers that a server at ``host`` accepts. An IP address is accepted whenever the server is open to the
    network: DNS rebinding needs a name."""

    def __init__(self, host: str, more: Iterable[str]) -> None:
        self._local = is_local(host)
        self._names = {*LOOPBACK, host.lower(), *(name.lower() for name in more)}
        if not self._local:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def allows(self, given: str) -> bool:
        name = host_name(given)
        return name in self._names or "*" in self._names or (not self._local and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _without_default_port(address: str) -> tuple[str, int | None] | None:
    """Host and port, a default port as None. The scheme is left out: behind a proxy we may see http for https."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    return (parts.hostname.lower(), None if port in (80, 443) else port) if parts.hostname else None


def _header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


async def _caller_of(scope: Scope) -> str:
    """Whom a request counts for: the key that it came with or was logged in with, else its address."""
    if _header_values(scope, b"authorization") or COOKIE in cookie_parser("; ".join(_header_values(scope, b"cookie"))):
        with suppress(ServerError):
            if who := await identified(Request(scope)):
                return f"key {who.id}"
    return str((scope.get("client") or ("",))[0])


@dataclass
class _Caller:
    open: int = 0
    tokens: float = 0.0
    at: float = 0.0


class RateLimit:
    """Token bucket per caller: ``at_once`` open requests, ``per_minute`` new ones, bursts of a tenth of that."""

    def __init__(self, at_once: int, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._rate = per_minute / 60
        self._burst = max(1.0, per_minute / 10)
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    def enter(self, name: str) -> int | None:
        """Begin a request of the caller ``name``; returns the seconds to wait when it is over its limits."""
        caller, now = self._caller(name), self._clock()
        caller.tokens = min(self._burst, caller.tokens + (now - caller.at) * self._rate)
        caller.at = now
        if caller.open >= self._at_once:
            return 1
        if caller.tokens < 1:
            return max(1, math.ceil((1 - caller.tokens) / self._rate))
        caller.tokens -= 1
        caller.open += 1
        return None

    def leave(self, name: str) -> None:
        """End a request that ``enter`` admitted."""
        self._caller(name).open -= 1

    def _caller(self, name: str) -> _Caller:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        caller = self._callers.get(digest)
        if caller is None:
            caller = self._callers[digest] = _Caller(0, self._burst, self._clock())
            self._forget_one()
        self._callers.move_to_end(digest)
        return caller

    def _forget_one(self) -> None:
        if len(self._callers) <= MAX_CALLERS:
            return
        idle = next((name for name, caller in self._callers.items() if not caller.open), None)
        if idle is not None:
            del self._callers[idle]
