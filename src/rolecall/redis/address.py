"""The server's address as people write it: checked before anything connects, and shown without what is secret."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import re
from contextlib import suppress
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio import ConnectionPool

from rolecall.errors import ConfigError

logger = logging.getLogger(__name__)
SCHEMES = ("redis", "rediss", "unix")
EXPECTED = "expected redis://user:password@host:6379/0, rediss://… or unix:///path"
TLS_OPTIONS = (
    "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_ciphers",
    "ssl_keyfile", "ssl_min_version", "ssl_password",
)  # fmt: skip
OPTIONS = ("db", "password", "username")
OURS = {
    "client_name": "", "decode_responses": "", "encoding": "", "encoding_errors": "", "health_check_interval": "",
    "max_connections": "REDIS_MAX_CONNECTIONS", "protocol": "", "retry_on_timeout": "", "socket_connect_timeout": "",
    "socket_keepalive": "", "socket_read_size": "", "socket_timeout": "REDIS_SOCKET_TIMEOUT", "timeout": "",
}  # fmt: skip
"""Options of redis-py that Rolecall decides itself → the setting to use instead, if there is one."""
PASSWORD = re.compile(r"(^|&)password=[^&]*")
HINT = "a password with @ / # ? or % must be percent-encoded: %40 %2F %23 %3F %25; or use REDIS_HOST and REDIS_PASSWORD"


def checked_url(url: str, variable: str = "REDIS_URL") -> str:
    """``url`` with the options that the connections may have. Raises ConfigError, which names ``variable`` and the
    option at fault and shows nothing of the URL."""
    url = url.strip()
    parts = _split(url, variable)
    options = parse_qsl(parts.query, keep_blank_values=True)
    known = (*OPTIONS, *(TLS_OPTIONS if parts.scheme == "rediss" else ()))
    for name, _ in options:
        if name not in known and name not in OURS:
            raise ConfigError(f"{variable} has the option {_shown(name)}, which is unknown: {_advice(name, known)}")
    for name in (name for name, _ in options if name in OURS):
        instead = f"; use {OURS[name]}" if OURS[name] else ""
        logger.warning("%s: the option %s is ignored%s", variable, name, instead)
    kept = [(name, value) for name, value in options if name in known]
    checked = urlunsplit(parts._replace(query=urlencode(kept))) if kept != options else url
    try:
        ConnectionPool.from_url(checked).make_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py
    except Exception as error:  # the boundary: redis-py validates by failing, in many ways
        named = next((name for name in known if name in str(error)), "")
        raise ConfigError(
            f"{variable}=(secret) is invalid{f' in the option {named}' if named else ''}: {EXPECTED}"
        ) from None
    return checked


def without_secrets(url: str) -> str:
    """``url`` without user and password."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.rpartition("@")[2].partition("?")
    query = PASSWORD.sub("", query).lstrip("&")
    return f"{scheme}://{place}{'?' if query else ''}{query}"


def checked_host(host: str) -> str:
    """REDIS_HOST as it stands in a URL. Raises ConfigError."""
    bare = host.strip().removeprefix("[").removesuffix("]")
    good = re.fullmatch(r"[^\s/@?#:]+", bare) is not None
    with suppress(ValueError):
        good = good or bool(ipaddress.ip_address(bare))
    if not good:
        shown = "" if "@" in host else f"={host}"
        raise ConfigError(f"REDIS_HOST{shown} is invalid: expected a host name or address; the port is REDIS_PORT")
    return f"[{bare}]" if ":" in bare else bare


def _split(url: str, variable: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    network = parts.scheme in ("redis", "rediss")
    if "@" in url and (not parts.scheme or parts.fragment or (network and "@" not in parts.netloc)):
        raise ConfigError(f"{variable}=(secret) is invalid: {EXPECTED}; {HINT}")
    if parts.scheme not in SCHEMES or port == 0 or parts.fragment or (parts.scheme == "unix" and not parts.path):
        raise ConfigError(f"{variable}=(secret) is invalid: {EXPECTED}")
    if network and not re.fullmatch(r"/*\d*/*", parts.path):
        raise ConfigError(
            f"{variable}=(secret) is invalid: expected the number of a database behind the host, such as /0; {HINT}"
        )
    return parts


def _advice(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}; {HINT}"


def _shown(name: str) -> str:
    """What may be shown of a name: what comes behind a ? may be a piece of a password."""
    return name if re.fullmatch(r"[a-z_]{1,40}", name) else "(not shown)"
