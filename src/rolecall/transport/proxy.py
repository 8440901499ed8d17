"""The proxy that a call to another server goes through, by the setting PROXY and the environment."""

from __future__ import annotations

import importlib.util
import ipaddress
from urllib.parse import urlsplit

from rolecall.errors import ConfigError
from rolecall.transport.http_client import is_loopback

PROXIED = ("http", "https", "all")
"""The schemes that variables of the environment name a proxy for."""


def proxy_of(setting: str, server: str = "") -> str:
    """SYSTEM, NO or the proxy's URL, for calls to ``server``. Raises ConfigError, also for a proxy variable of the
    environment that no client can use; its text omits the value, which may contain a password."""
    if setting.upper() == "SYSTEM" and not is_loopback(server):
        _check_environment()
    if setting.upper() in ("SYSTEM", "NO"):
        return setting.upper()
    url = setting if "://" in setting else f"http://{setting}"
    try:
        parts = urlsplit(url)
        known = parts.hostname and parts.port
    except ValueError:
        known = None
    if not known:
        raise ConfigError("PROXY is invalid: expected SYSTEM, NO or host:port")
    return url


def _check_environment() -> None:
    from urllib.request import getproxies  # what the clients read

    found = getproxies()
    for scheme in PROXIED:
        if value := found.get(scheme):
            _check_proxy(f"{scheme.upper()}_PROXY", value)
    for entry in found.get("no", "").split(","):
        if not _is_host(entry.strip()):
            raise ConfigError(
                f"NO_PROXY has an entry that is invalid: {entry.strip()[:60]!r}; expected host names, domains and "
                "addresses such as localhost,.example.org,10.0.0.0/8,::1"
            )


def _check_proxy(variable: str, value: str) -> None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise ConfigError(f"{variable} is invalid: expected a proxy such as http://host:port; PROXY=NO goes without")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigError(f"{variable} is a SOCKS proxy, which needs: pip install socksio; PROXY=NO goes without")


def _is_host(entry: str) -> bool:
    """Whether the clients take ``entry`` of NO_PROXY: of what contains a colon, an IPv6 address or ``host:port``."""
    host, _, port = entry.rpartition(":")
    if not host:
        return entry.isascii()
    try:
        return bool(ipaddress.ip_address(entry))
    except ValueError:
        return entry.isascii() and ":" not in host and port.isdigit()
