"""What clients of other servers are made with: addresses that are checked, limits, certificates."""

from __future__ import annotations

import ipaddress
import ssl
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from rolecall.errors import ConfigError

KEPT_OPEN = 20
"""Idle connections that a client keeps."""


def address(variable: str, url: str) -> str:
    """``url`` without a trailing slash. Raises ConfigError that names ``variable`` if it is not an http(s) URL."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        shown = "" if "@" in url else f"={url}"
        raise ConfigError(f"{variable}{shown} is invalid: expected an address such as http://127.0.0.1:8080/v1")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the host of ``url`` is localhost or a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_options(url: str, proxy: str, http: ModuleType) -> dict[str, Any]:
    """Arguments for a client of ``http``, which is httpx or httpx2, that only calls ``url``; ``proxy`` is what proxy_of
    returns. Servers on this machine are reached without a proxy and without keep-alive. Raises ConfigError."""
    named = ssl.get_default_verify_paths() if urlsplit(url).scheme == "https" else None
    # Reused loopback connections sometimes fail with "Server disconnected"; new ones cost nothing.
    kept = 0 if is_loopback(url) else KEPT_OPEN
    limits = http.Limits(max_connections=None, max_keepalive_connections=kept)
    options = {"limits": limits, "verify": tls_context(http, named)}
    if proxy == "NO" or not kept:
        return {**options, "trust_env": False}
    return options if proxy == "SYSTEM" else {**options, "proxy": proxy}


@cache
def tls_context(http: ModuleType, named: ssl.DefaultVerifyPaths | None) -> ssl.SSLContext:
    """The TLS context that all clients share: loading a machine's certificates takes 20 ms. SSL_CERT_FILE and
    SSL_CERT_DIR apply only if ``named``, the paths they lead to, is given. Raises ConfigError."""
    try:
        return http.create_ssl_context(trust_env=named is not None)  # type: ignore[no-any-return]
    except OSError as error:
        raise ConfigError(f"SSL_CERT_FILE or SSL_CERT_DIR in the environment: {error}") from None
