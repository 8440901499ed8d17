"""API keys and logins of the HTTP server. Only their SHA-256 is stored."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from dataclasses import dataclass

import msgspec

from rolecall.bus.bus import Bus
from rolecall.bus.schedule.schedules import unschedule_user
from rolecall.errors import ConfigError, RolecallError
from rolecall.redis import keys
from rolecall.redis.scripts import milliseconds

logger = logging.getLogger(__name__)
RULE = "keys"
"""The field of the bus's own hash that says whether requests need a key: REQUIRED or OPEN, absent before the first."""
FRONT = "http"
"""The front end whose users are keys: ``http:<id>`` is what the conversations of a key begin with."""
REQUIRED, OPEN = b"required", b"open"
NAME_CHARS = 60


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it is stored: ``digest`` is the SHA-256 of the whole key, ``made`` is in ms since 1970."""

    id: str
    name: str
    digest: str
    admin: bool = False
    made: int = 0


class Login(msgspec.Struct, frozen=True):
    """A login to the web page: the id and the digest of the key it was made with, and its CSRF token."""

    key: str
    csrf: str
    digest: str = ""


@dataclass(frozen=True)
class AccessRule:
    """The API keys, and whether the bus says that requests need one. ``required`` is None if it says nothing: there was
    never a key, or the server has lost its data. With ``lasting`` it says so without the keys as well."""

    keys: tuple[ApiKey, ...]
    required: bool | None
    lasting: bool = False


async def create_key(bus: Bus, name: str, *, admin: bool = False) -> tuple[ApiKey, str]:
    """Create a key. The text returned with it is the only copy. From now on requests need a key, whatever becomes of
    this one. Raises ConfigError for a ``name`` without or with too many characters, or with some that do not print."""
    name = name.strip(" ")
    if not (name.isprintable() and 0 < len(name) <= NAME_CHARS):
        raise ConfigError(f"the name {name[:NAME_CHARS]!r} is invalid: expected 1 to {NAME_CHARS} printable characters")
    key_id = secrets.token_hex(4)
    secret = f"rk_{key_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey(key_id, name, digest_of(secret), admin, time.time_ns() // 1_000_000)
    await require_keys(bus)
    await bus.server.call("HSET", keys.API_KEYS, key_id, msgspec.json.encode(key))
    return key, secret


async def list_keys(bus: Bus) -> list[ApiKey]:
    """All keys, oldest first. An entry that cannot be read is no key, and is logged."""
    flat = await bus.server.fetch("HGETALL", keys.API_KEYS)
    found = [_read(key_id, raw) for key_id, raw in zip(flat[::2], flat[1::2], strict=True)]
    return sorted(filter(None, found), key=lambda key: key.made)


async def access_rule(bus: Bus) -> AccessRule:
    """The keys, and whether one is needed. A server that has keys needs one, whatever else it says."""
    said = await bus.server.fetch("HGET", keys.META, RULE)
    exist = await bus.server.fetch("EXISTS", keys.API_KEYS)
    required = None if said is None else said != OPEN
    return AccessRule(tuple(await list_keys(bus)), True if exist else required, lasting=bool(required))


async def require_keys(bus: Bus) -> None:
    """Have every request need a key from now on. Idempotent."""
    await bus.server.call("HSET", keys.META, RULE, REQUIRED)


async def revoke_all_keys(bus: Bus, *, instance: str = "front") -> None:
    """Delete every key and its reminders, and let localhost in without one again."""
    found = await list_keys(bus)
    await bus.server.call("DEL", keys.API_KEYS)
    await bus.server.call("HSET", keys.META, RULE, OPEN)
    for key in found:
        await _unschedule(bus, key.id, instance)


async def revoke_key(bus: Bus, key_id: str, *, instance: str = "front") -> None:
    """Delete a key; its logins and its reminders end with it. Requests need a key even when this was the last. Raises
    RolecallError, and changes nothing, when there is none of that id."""
    if not await bus.server.call("HEXISTS", keys.API_KEYS, key_id):
        raise RolecallError(f"there is no key {key_id[:60]!r}; see `rolecall key list`")
    await require_keys(bus)
    await bus.server.call("HDEL", keys.API_KEYS, key_id)
    await _unschedule(bus, key_id, instance)


async def create_login(bus: Bus, key_id: str, digest: str, seconds: float) -> tuple[Login, str]:
    """Create a login with the key of that id and digest, for ``seconds``; returns it with the value of its cookie."""
    login, cookie = Login(key_id, secrets.token_urlsafe(32), digest), secrets.token_urlsafe(32)
    name = keys.login(digest_of(cookie))
    await bus.server.call("SET", name, msgspec.json.encode(login), "PX", milliseconds(seconds))
    return login, cookie


async def find_login(bus: Bus, cookie: str) -> Login | None:
    """The login with that cookie, unless it has expired."""
    raw = await bus.server.fetch("GET", keys.login(digest_of(cookie)))
    try:
        return msgspec.json.decode(raw, type=Login) if raw is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


async def delete_login(bus: Bus, cookie: str) -> None:
    """End a login."""
    await bus.server.call("DEL", keys.login(digest_of(cookie)))


def digest_of(secret: str) -> str:
    """The SHA-256 of a key or a cookie, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


async def _unschedule(bus: Bus, key_id: str, instance: str) -> None:
    user = f"{FRONT}:{key_id}"
    await unschedule_user(bus, FRONT, user, user, instance=instance)


def _read(key_id: bytes, raw: bytes) -> ApiKey | None:
    try:
        return msgspec.json.decode(raw, type=ApiKey)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        logger.error("API key %s cannot be read and is ignored", key_id.decode("utf-8", "replace")[:60])
        return None
