"""API keys and logins of the HTTP server. Only their SHA-256 is stored."""

from __future__ import annotations

import hashlib
import secrets
import time

import msgspec

from rolecall.bus.bus import Bus
from rolecall.errors import RolecallError
from rolecall.redis import keys


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it is stored: ``digest`` is the SHA-256 of the whole key, ``made`` is in ms since 1970."""

    id: str
    name: str
    digest: str
    admin: bool = False
    made: int = 0


class Login(msgspec.Struct, frozen=True):
    """A login to the web page: the id of the key it was made with, and its CSRF token."""

    key: str
    csrf: str


async def create_key(bus: Bus, name: str, *, admin: bool = False) -> tuple[ApiKey, str]:
    """Create a key. The text returned with it is the only copy."""
    key_id = secrets.token_hex(4)
    secret = f"rk_{key_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey(key_id, name, digest_of(secret), admin, time.time_ns() // 1_000_000)
    await bus.server.call("HSET", keys.API_KEYS, key_id, msgspec.json.encode(key))
    return key, secret


async def list_keys(bus: Bus) -> list[ApiKey]:
    """All keys, oldest first."""
    flat = await bus.server.fetch("HGETALL", keys.API_KEYS)
    return sorted((msgspec.json.decode(raw, type=ApiKey) for raw in flat[1::2]), key=lambda key: key.made)


async def revoke_key(bus: Bus, key_id: str) -> None:
    """Delete a key; its logins end with it. Raises RolecallError when there is none of that id."""
    if not await bus.server.call("HDEL", keys.API_KEYS, key_id):
        raise RolecallError(f"there is no key {key_id[:60]!r}; see `rolecall key list`")


async def create_login(bus: Bus, key_id: str, seconds: float) -> tuple[Login, str]:
    """Create a login that lasts for ``seconds``; returns it with the value of its cookie."""
    login, cookie = Login(key_id, secrets.token_urlsafe(32)), secrets.token_urlsafe(32)
    name = keys.login(digest_of(cookie))
    await bus.server.call("SET", name, msgspec.json.encode(login), "PX", round(seconds * 1000))
    return login, cookie


async def find_login(bus: Bus, cookie: str) -> Login | None:
    """The login with that cookie, unless it has expired."""
    raw = await bus.server.fetch("GET", keys.login(digest_of(cookie)))
    return msgspec.json.decode(raw, type=Login) if raw is not None else None


async def delete_login(bus: Bus, cookie: str) -> None:
    """End a login."""
    await bus.server.call("DEL", keys.login(digest_of(cookie)))


def digest_of(secret: str) -> str:
    """The SHA-256 of a key or a cookie, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
