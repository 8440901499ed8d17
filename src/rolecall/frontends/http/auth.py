"""Who may use the HTTP server: API keys, logins to the web page, and the routes to log in and out."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel, Field

from rolecall.errors import RolecallError
from rolecall.frontends.http.problems import bus_timeout
from rolecall.redis import keys
from rolecall.redis.server import Server

FRESH_SECONDS = 2.0
"""How long a process goes by the list of keys as it read it; a revoked key is refused everywhere after that."""
NEW_SECONDS = 0.2
"""The same when it does not know the key it is shown: that may have been made just now."""
COOKIE = "rolecall_login"
CSRF_HEADER = "x-csrf-token"
KEY_FORM = re.compile(r"rk_([0-9a-f]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
GIVEN = "given"
"""Id of the key that the settings give."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
NO_KEY = "An API key is required: Authorization: Bearer rk_… Create one with `rolecall key new NAME`."
bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="created by `rolecall key new NAME`")
router = APIRouter(tags=["login"])


class ApiKey(msgspec.Struct, frozen=True):
    """A key as the server keeps it: ``digest`` is the SHA-256 of the whole of it, ``made`` ms since 1970."""

    id: str
    name: str
    digest: str
    admin: bool = False
    made: int = 0


class Principal(msgspec.Struct, frozen=True):
    """Who sends a request. ``id`` and ``digest`` (SHA-256) are those of the API key; ``id`` is ``local`` if no key is
    required. ``csrf`` is the token that pages of a login send with every change."""

    id: str
    name: str
    admin: bool = False
    digest: str = ""
    csrf: str = ""


class Login(msgspec.Struct, frozen=True):
    """A login to the web page, made with the key of that id."""

    key: str
    csrf: str


LOCAL = Principal("local", "local", admin=True)


class Keys:
    """The API keys and logins of a deployment. With ``open_locally`` everyone is let in as an operator while there is
    no key at all: only for a server that just this machine can reach. ``given`` is an operator's key of the settings
    that is good beside them."""

    def __init__(
        self, server: Server, *, open_locally: bool = False, login_seconds: float = 43_200, given: str = ""
    ) -> None:
        self._server = server
        self._given = {GIVEN: ApiKey(GIVEN, "operator", _digest(given), admin=True)} if given else {}
        self._open_locally = open_locally
        self._login_seconds = login_seconds
        self._known: dict[str, ApiKey] = {}
        self._read = -FRESH_SECONDS
        self._reading = asyncio.Lock()

    async def new(self, name: str, *, admin: bool = False) -> tuple[ApiKey, str]:
        """Make a key; the text returned with it is the only time it is seen."""
        key_id = secrets.token_hex(4)
        secret = f"rk_{key_id}_{secrets.token_urlsafe(32)}"
        key = ApiKey(key_id, name, _digest(secret), admin, time.time_ns() // 1_000_000)
        await self._server.call("HSET", keys.API_KEYS, key_id, msgspec.json.encode(key))
        self._read = -FRESH_SECONDS
        return key, secret

    async def everyone(self) -> list[ApiKey]:
        """All keys, the oldest first."""
        flat = await self._server.fetch("HGETALL", keys.API_KEYS)
        return sorted((msgspec.json.decode(raw, type=ApiKey) for raw in flat[1::2]), key=lambda key: key.made)

    async def revoke(self, key_id: str) -> None:
        """Let no one in with that key any more, nor with a login made with it. Raises RolecallError for an unknown
        one."""
        if not await self._server.call("HDEL", keys.API_KEYS, key_id):
            raise RolecallError(f"there is no key {key_id[:60]!r}; `rolecall key list` shows those there are")
        self._read = -FRESH_SECONDS

    async def find(self, secret: str) -> Principal | None:
        """Whose key ``secret`` is; nobody's is None."""
        form, digest, current = KEY_FORM.fullmatch(secret), _digest(secret), await self._current()
        if form and form[1] not in current:
            current = await self._current(NEW_SECONDS)
        for key in (current.get(form[1]) if form else None, current.get(GIVEN)):
            known = key.digest if key else _digest("")
            if hmac.compare_digest(known, digest) and key is not None:
                return Principal(key.id, key.name, key.admin, key.digest)
        return None

    async def log_in(self, secret: str) -> tuple[Principal, str] | None:
        """Begin a login with a key: who it is, and the cookie's value; None for no key of ours."""
        principal = await self.find(secret)
        if principal is None:
            return None
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        login = msgspec.json.encode(Login(principal.id, csrf))
        milliseconds = round(self._login_seconds * 1000)
        await self._server.call("SET", keys.login(_digest(cookie)), login, "PX", milliseconds)
        return msgspec.structs.replace(principal, csrf=csrf), cookie

    async def log_out(self, cookie: str) -> None:
        """End a login."""
        await self._server.call("DEL", keys.login(_digest(cookie)))

    async def logged_in(self, cookie: str) -> Principal | None:
        """Whose login the cookie is of; None when it is over, or its key was revoked."""
        raw = await self._server.fetch("GET", keys.login(_digest(cookie)))
        if raw is None:
            return None
        login = msgspec.json.decode(raw, type=Login)
        key = (await self._current()).get(login.key)
        return Principal(key.id, key.name, key.admin, key.digest, login.csrf) if key else None

    async def open(self) -> bool:
        """Whether everyone is let in."""
        return self._open_locally and not await self._current()

    async def _current(self, fresh: float = FRESH_SECONDS) -> dict[str, ApiKey]:
        async with self._reading:
            if time.monotonic() - self._read > fresh:
                self._known = {key.id: key for key in await self.everyone()} | self._given
                self._read = time.monotonic()
        return self._known


async def require(request: Request, admin: bool = False) -> Principal:
    """Authenticate ``request``. Raises HTTPException: 401 without a key or login; 403 for a change by a login
    without its CSRF token, and when ``admin`` is set and the key is not an operator's."""
    found: Keys = request.app.state.services.keys
    async with bus_timeout():
        principal = await _principal(request, found)
    if principal is None:
        raise HTTPException(401, NO_KEY, {"WWW-Authenticate": "Bearer"})
    if admin and not principal.admin:
        raise HTTPException(403, "This requires an operator's key. Create one with `rolecall key new NAME --admin`.")
    return principal


async def user(request: Request, _: Annotated[object, Depends(bearer)] = None) -> Principal:
    """Dependency: any API key or login."""
    return await require(request)


async def operator(request: Request, _: Annotated[object, Depends(bearer)] = None) -> Principal:
    """Dependency: an operator's key or login."""
    return await require(request, admin=True)


User = Annotated[Principal, Depends(user)]
Operator = Annotated[Principal, Depends(operator)]


class Credentials(BaseModel):
    """What to log in with."""

    key: str = Field(max_length=200, examples=["rk_0123abcd_…"])


@router.post("/login", summary="Log in to the web page with an API key")
async def log_in(credentials: Credentials, request: Request, response: Response) -> dict[str, Any]:
    """Sets a cookie. Later requests that change something send `csrf` in the header X-CSRF-Token."""
    services = request.app.state.services
    found = await services.keys.log_in(credentials.key)
    if found is None:
        raise HTTPException(401, "This key is unknown or was revoked.")
    principal, cookie = found
    seconds = round(services.settings.login_hours * 3600)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite="strict", secure=secure)
    return {"name": principal.name, "admin": principal.admin, "csrf": principal.csrf}


@router.post("/logout", status_code=204, summary="Log out of the web page")
async def log_out(request: Request, response: Response, _: User) -> None:
    """Does nothing without a login."""
    await request.app.state.services.keys.log_out(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


async def _principal(request: Request, found: Keys) -> Principal | None:
    scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer" and (principal := await found.find(secret)):
        return principal
    cookie = request.cookies.get(COOKIE)
    if cookie and (principal := await found.logged_in(cookie)):
        if request.method not in SAFE_METHODS:
            _check_token(request, principal)
        return principal
    return LOCAL if await found.open() else None


def _check_token(request: Request, principal: Principal) -> None:
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode(), principal.csrf.encode()):
        raise HTTPException(403, "The CSRF token is missing or invalid. Reload the page.")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
