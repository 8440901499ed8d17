"""Where servers of this process listen: sockets of their own, made before anything serves on them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rolecall.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})
PROXY_PREFIX = "x-forwarded-"
"""Headers of requests that a proxy has passed on; a client that sends one itself only loses by it."""
PORTS_TRIED = 100
BACKLOG = 1024


def is_local(host: str) -> bool:
    """Whether a server at ``host`` can only be reached from this machine."""
    try:
        return host in LOOPBACK or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def host_name(given: str) -> str:
    """The name in a Host header, in lower case; empty for an invalid one."""
    try:
        return (urlsplit(f"//{given}").hostname or "").lower()
    except ValueError:
        return ""


def is_direct(scope: Mapping[str, Any]) -> bool:
    """Whether an ASGI request was sent by this machine to this machine, with no proxy between: its peer and its Host
    are local, and no header tells of another client. Whatever is missing counts against it."""
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    if any(name in PROXY_HEADERS or name.startswith(PROXY_PREFIX) for name, _ in headers):
        return False
    if scope.get("http_version") == "1.0" and ("connection", "close") in headers:
        return False  # as nginx asks, which names neither the client nor its Host unless it is told to
    hosts = [host_name(value) for name, value in headers if name == "host"]
    peer = str((scope.get("client") or ("",))[0])
    return len(hosts) == 1 and is_local(hosts[0]) and is_local(peer)


class LocalOnly:
    """ASGI middleware that refuses every request which is not direct; ``advice`` says what to do about it."""

    def __init__(self, app: ASGIApp, advice: str) -> None:
        self._app, self._advice = app, advice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http" and not is_direct(scope):
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{self._advice}\n".encode()})
            return
        await self._app(scope, receive, send)


def listen(host: str, port: int, *, names: tuple[str, str] = ("HTTP_HOST", "HTTP_PORT")) -> socket.socket:
    """A listening socket at ``host``, on ``port`` or the next free one, any if it is 0. Raises ConfigError, which calls
    the two by their ``names``."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(
            f"{names[0]}={host} is invalid: expected an address of this machine ({error.strerror})"
        ) from None
    candidates = range(port, min(port + PORTS_TRIED, 65_536)) if port else (0,)
    for candidate in candidates:
        try:
            return _listening(family, address[0], candidate)
        except OSError as error:
            problem = error.strerror
    raise ConfigError(f"{names[1]}={port}: no free port from there on at {host}: {problem}")


def address_of(listener: socket.socket) -> str:
    """The address to open on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _listening(family: int, host: str | int, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only so
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
