"""What every adapter needs to reach its server: addresses, proxies, connections, and what an image is."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from rolecall.errors import ConfigError

IMAGE_TYPES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
KEPT_OPEN = 20


def address(variable: str, url: str) -> str:
    """``url`` without a slash at its end. Raises ConfigError, which names ``variable``."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        shown = "" if "@" in url else f"={url}"
        raise ConfigError(f"{variable}{shown}: an address such as http://127.0.0.1:8080/v1 is allowed")
    return url.rstrip("/")


def proxy_of(setting: str) -> str:
    """SYSTEM, NO or the proxy's URL. Raises ConfigError without the value, which may hold a password."""
    if setting.upper() in ("SYSTEM", "NO"):
        return setting.upper()
    url = setting if "://" in setting else f"http://{setting}"
    try:
        parts = urlsplit(url)
        known = parts.hostname and parts.port
    except ValueError:
        known = None
    if not known:
        raise ConfigError("PROXY: SYSTEM, NO or host:port is allowed")
    return url


def is_loopback(url: str) -> bool:
    """True for a server on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def client_options(url: str, proxy: str, limits: Callable[..., Any]) -> dict[str, Any]:
    """Arguments for an HTTP client that speaks to ``url`` alone; ``proxy`` as proxy_of returns it.

    ``limits`` is the Limits class of httpx or httpx2, whichever the client is of. A server on this machine is
    reached past any proxy and by new connections only.
    """
    if is_loopback(url):
        # Reused loopback connections fail now and then with "Server disconnected"; new ones cost nothing.
        return {**_direct(url), "limits": limits(max_connections=None, max_keepalive_connections=0)}
    pool = {"limits": limits(max_connections=None, max_keepalive_connections=KEPT_OPEN)}
    if proxy == "SYSTEM":
        return pool
    return {**pool, **_direct(url)} if proxy == "NO" else {**pool, "proxy": proxy}


def image_type(image: bytes) -> str:
    """Its MIME type, by its first bytes; image/jpeg for what is not known."""
    return "image/" + next((kind for start, kind in IMAGE_TYPES if image.startswith(start)), "jpeg")


def _direct(url: str) -> dict[str, Any]:
    """Past the proxies that the environment names, but not past its certificates (SSL_CERT_FILE)."""
    paths = ssl.get_default_verify_paths()
    if urlsplit(url).scheme == "http" or paths.cafile in (None, paths.openssl_cafile):
        return {"trust_env": False}
    return {"trust_env": False, "verify": ssl.create_default_context(cafile=paths.cafile)}
