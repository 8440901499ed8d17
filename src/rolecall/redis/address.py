"""The server's address as people write it: checked before anything connects, and shown without what is secret."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from redis.asyncio import ConnectionPool

from rolecall.errors import ConfigError

logger = logging.getLogger(__name__)
KINDS = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
SCHEMES = ("redis", "rediss", "valkey", "valkeys")
EXPECTED = (
    "expected redis://user:password@host:6379/0, rediss://… or unix:///path; redis+sentinel://host,host,host/name; or "
    "redis+cluster://host,host,host"
)
PORTS = {"single": 6379, "sentinel": 26_379, "cluster": 6379}
TLS_OPTIONS = (
    "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_ciphers",
    "ssl_keyfile", "ssl_min_version", "ssl_password",
)  # fmt: skip
OPTIONS = ("db", "password", "username")
SENTINEL_OPTIONS = ("sentinel_password", "sentinel_username")
OURS = {
    "client_name": "", "decode_responses": "", "encoding": "", "encoding_errors": "", "health_check_interval": "",
    "max_connections": "REDIS_MAX_CONNECTIONS", "protocol": "", "retry_on_timeout": "", "socket_connect_timeout": "",
    "socket_keepalive": "", "socket_read_size": "", "socket_timeout": "REDIS_SOCKET_TIMEOUT", "timeout": "",
}  # fmt: skip
"""Options of redis-py that Rolecall decides itself → the setting to use instead, if there is one."""
PASSWORD = re.compile(r"(^|&)(sentinel_)?password=[^&]*")
BROKEN_OFF = re.compile("reset by peer|closed by server", re.IGNORECASE)
HINT = "a password with @ / # ? or % must be percent-encoded: %40 %2F %23 %3F %25; or use REDIS_HOST and REDIS_PASSWORD"


@dataclass(frozen=True)
class ServerAddress:
    """A checked URL, taken apart. ``hosts`` are the server, the Sentinels, or some nodes of the cluster; ``name`` is
    that of the primary with Sentinels. ``single`` is the URL that a single server would have, with what applies to
    each connection: user, password, database and TLS."""

    kind: Literal["single", "sentinel", "cluster"]
    single: str
    hosts: tuple[tuple[str, int], ...] = ()
    name: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def secure(self) -> bool:
        """Whether the connections are encrypted."""
        return self.single.startswith("rediss:")

    @classmethod
    def of(cls, url: str) -> ServerAddress:
        """Take ``url``, which is valid, apart."""
        parts = split_address(url)
        scheme, kind = _scheme(parts)
        if kind == "single":
            return cls("single", urlunsplit(parts._replace(scheme=scheme)))
        login, at, hosts = parts.netloc.rpartition("@")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        name, _, database = parts.path.strip("/").partition("/")
        own = {option: options.pop(option, None) for option in SENTINEL_OPTIONS}
        found = tuple(_host(host, PORTS[kind]) for host in hosts.split(","))
        path = f"/{database}" if kind == "sentinel" else ""
        single = urlunsplit((scheme, f"{login}{at}{_written(*found[0])}", path, urlencode(options), ""))
        return cls(kind, single, found, unquote(name) if kind == "sentinel" else "", **own)


def checked_url(url: str) -> str:
    """``url``, that of REDIS_URL, with the options that the connections may have. Raises ConfigError, which names the
    option at fault and shows nothing of the URL."""
    url = url.strip()
    parts = _split(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    scheme, kind = _scheme(parts)
    known = (
        *OPTIONS, *(TLS_OPTIONS if scheme == "rediss" else ()), *(SENTINEL_OPTIONS if kind == "sentinel" else ()),
    )  # fmt: skip
    for name, _ in options:
        if name not in known and name not in OURS:
            raise ConfigError(f"REDIS_URL has the option {_shown(name)}, which is unknown: {_advice(name, known)}")
    for name in (name for name, _ in options if name in OURS):
        instead = f"; use {OURS[name]}" if OURS[name] else ""
        logger.warning("REDIS_URL: the option %s is ignored%s", name, instead)
    kept = [(name, value) for name, value in options if name in known]
    checked = urlunsplit(parts._replace(query=urlencode(kept))) if kept != options else url
    try:
        address = ServerAddress.of(checked)
        ConnectionPool.from_url(address.single).make_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py
    except Exception as error:  # the boundary: redis-py validates by failing, in many ways
        named = next((name for name in known if name in str(error)), "")
        where = f" in the option {named}" if named else ""
        raise ConfigError(f"REDIS_URL=(secret) is invalid{where}: {EXPECTED}") from None
    _check_kind(address, parts)
    return checked


def check_tls_files(url: str) -> None:
    """Read the certificates and the key that ``url``, which is valid, names. Raises ConfigError, which names the option
    and the file at fault."""
    options = dict(parse_qsl(split_address(url).query))
    context, key = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), options.get("ssl_keyfile")
    reads: dict[str, Callable[[str], object]] = {
        "ssl_ca_path": os.listdir,
        "ssl_keyfile": lambda file: Path(file).read_bytes(),
        "ssl_ca_certs": context.load_verify_locations,
        "ssl_certfile": lambda file: context.load_cert_chain(file, key, options.get("ssl_password", "")),
    }
    if key and "ssl_certfile" not in options:
        raise ConfigError(f"REDIS_URL: ssl_keyfile={key} is the key of no certificate: set ssl_certfile too")
    for name in (name for name in reads if name in options):
        try:
            reads[name](options[name])
        except ssl.SSLError:
            pair = ", and its key there or in ssl_keyfile, which ssl_password opens"
            expected = f"expected a PEM certificate{pair if name == 'ssl_certfile' else ''}"
            raise ConfigError(f"REDIS_URL: {name}={options[name]} is invalid: {expected}") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"REDIS_URL: {name}={options[name]} cannot be read: {why}") from None


def split_address(url: str) -> SplitResult:
    """``urlsplit`` that takes several hosts: Python 3.14's own refuses ``h1,[::1]:7``. Raises ValueError."""
    scheme, mark, rest = url.partition("://")
    if "+" not in scheme:
        return urlsplit(url)
    hosts, end, behind = re.split(r"([/?#]|$)", rest, maxsplit=1)
    return urlsplit(f"{scheme}{mark}{end}{behind}")._replace(netloc=hosts)


def without_secrets(url: str) -> str:
    """``url`` without user and password."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.rpartition("@")[2].partition("?")
    query = PASSWORD.sub("", query).lstrip("&")
    return f"{scheme}://{place}{'?' if query else ''}{query}"


def tls_advice(url: str, why: str) -> str:
    """What to change in ``url`` if the failure ``why`` looks like a mismatch of TLS; empty if it does not."""
    address = ServerAddress.of(url)
    kind = "" if address.kind == "single" else f"+{address.kind}"
    if not address.secure:
        return f"; if it uses TLS, write rediss{kind}://" if BROKEN_OFF.search(why) else ""
    if "Timeout" in why or "WRONG_VERSION" in why:
        return f"; if it does not use TLS, write redis{kind}://"
    if BROKEN_OFF.search(why) or "ALERT" in why:
        return "; it may require a client certificate: ssl_certfile and ssl_keyfile"
    if "expired" in why or "not yet valid" in why:
        return "; the server needs a new certificate, or a clock is wrong"
    if "mismatch" in why:
        return "; name the server as its certificate does"
    return "; set ssl_ca_certs to its authority's certificate" if "VERIFY_FAILED" in why else ""


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


def _split(url: str) -> SplitResult:
    try:
        parts = split_address(url)
        several = _scheme(parts)[1] != "single"
        port = None if several else parts.port
    except ValueError:
        parts, port, several = SplitResult("", "", "", "", ""), 0, False
    network = parts.scheme != "unix" and bool(parts.scheme)
    if "@" in url and (not parts.scheme or parts.fragment or (network and "@" not in parts.netloc)):
        raise ConfigError(f"REDIS_URL=(secret) is invalid: {EXPECTED}; {HINT}")
    if not parts.scheme or port == 0 or parts.fragment or (parts.scheme == "unix" and not parts.path):
        raise ConfigError(f"REDIS_URL=(secret) is invalid: {EXPECTED}")
    if network and not several and not re.fullmatch(r"/*\d*/*", parts.path):
        raise ConfigError(
            f"REDIS_URL=(secret) is invalid: expected the number of a database after the host, such as /0; {HINT}"
        )
    return parts


def _scheme(parts: SplitResult) -> tuple[str, Literal["single", "sentinel", "cluster"]]:
    """redis-py's scheme for each connection, and the kind of server. Raises ValueError."""
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme == "unix":
        return "unix", "single"
    if scheme not in SCHEMES or kind not in KINDS or parts.scheme.endswith("+"):
        raise ValueError(f"unknown scheme {parts.scheme}")
    return "rediss" if scheme in ("rediss", "valkeys") else "redis", KINDS[kind]  # type: ignore[return-value]


def _check_kind(address: ServerAddress, parts: SplitResult) -> None:
    if address.kind == "sentinel" and not re.fullmatch(r"/[^/]+(/\d*)?/?", parts.path):
        raise ConfigError(
            "REDIS_URL=(secret) is invalid: expected the name of the primary after the Sentinels, such as /mymaster"
        )
    options = dict(parse_qsl(parts.query))
    if address.kind == "cluster" and (parts.path.strip("/") not in ("", "0") or options.get("db", "0") != "0"):
        raise ConfigError("REDIS_URL=(secret) is invalid: a cluster has no databases but 0; leave the number out")


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.port == 0 or parts.path:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or port


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _advice(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}; {HINT}"


def _shown(name: str) -> str:
    """What may be shown of a name: what comes behind a ? may be a piece of a password."""
    return name if re.fullmatch(r"[a-z_]{1,40}", name) else "(not shown)"
