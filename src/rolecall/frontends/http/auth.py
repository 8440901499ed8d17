"""Who may use the HTTP server: API keys, logins to the web page, and the routes to log in and out."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel, Field

from rolecall.bus.access_keys import (
    AccessRule,
    ApiKey,
    access_rule,
    create_login,
    delete_login,
    digest_of,
    find_login,
    require_keys,
)
from rolecall.bus.bus import Bus
from rolecall.errors import ServerError, ServerRefused
from rolecall.frontends.http.api_document import api_router
from rolecall.frontends.http.problems import bus_timeout, text
from rolecall.frontends.sockets import is_direct

FRESH_SECONDS = 2.0
"""How long a process uses the list of keys as it read it: a revoked key is refused everywhere after that."""
NEW_SECONDS = 0.2
"""The same for an unknown key, which may have been created just now. While localhost needs no key, an unknown one is
looked up at once: the first key must count from its first request, and no stranger reaches such a server."""
COOKIE = "rolecall_login"
CSRF_HEADER = "x-csrf-token"
KEY_FORM = re.compile(r"rk_([0-9a-f]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
GIVEN = "given"
"""The id of the key in the settings."""
IDENTIFIED = "identified"
"""The state of a request holds under this name whose it is."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
logger = logging.getLogger(__name__)
bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="created by `rolecall key new NAME`")
router = api_router(tags=["login"])


class Principal(msgspec.Struct, frozen=True):
    """Who sends a request. ``id`` and ``digest`` (SHA-256) are those of the API key; ``id`` is ``local`` without
    a key, where none is required. ``csrf`` is the token that pages of a login send with every change."""

    id: str
    name: str
    admin: bool = False
    digest: str = ""
    csrf: str = ""


LOCAL = Principal("local", "local", admin=True)


class Authenticator:
    """Knows whose an API key or a login is. ``given`` is an operator's key from the settings. With ``open_locally``
    requests of this machine need no key until the first one exists: only for a server that just this machine can reach.

    Once there was a key, requests need one, also after the last was revoked and after the server lost its data. The bus
    remembers that, this process, and the file ``memory`` of this machine; only ``rolecall key reset`` undoes it.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        open_locally: bool = False,
        login_seconds: float = 43_200,
        given: str = "",
        memory: Path | None = None,
    ) -> None:
        self._bus = bus
        self._given = {GIVEN: ApiKey(GIVEN, "operator", digest_of(given), admin=True)} if given else {}
        self._open_locally = open_locally
        self._memory = memory
        self._closed = memory is not None and memory.exists()
        self._login_seconds = login_seconds
        self._known: dict[str, ApiKey] = {}
        self._read_at = -FRESH_SECONDS
        self._reading = asyncio.Lock()

    async def find(self, secret: str) -> Principal | None:
        """Whose key ``secret`` is; None for an unknown or revoked key."""
        form, digest, current = KEY_FORM.fullmatch(secret), digest_of(secret), await self._current()
        if form and form[1] not in current:
            current = await self._current(0.0 if self._open_locally and not self._closed else NEW_SECONDS)
        for key in (current.get(form[1]) if form else None, current.get(GIVEN)):
            known = key.digest if key else digest_of("")
            if hmac.compare_digest(known, digest) and key is not None:
                return _principal_of(key)
        return None

    async def log_in(self, secret: str) -> tuple[Principal, str] | None:
        """Create a login with a key: its owner, and the value of the cookie. None for an unknown key."""
        principal = await self.find(secret)
        if principal is None:
            return None
        login, cookie = await create_login(self._bus, principal.id, principal.digest, self._login_seconds)
        return msgspec.structs.replace(principal, csrf=login.csrf), cookie

    async def log_out(self, cookie: str) -> None:
        """End a login."""
        await delete_login(self._bus, cookie)

    async def logged_in(self, cookie: str) -> Principal | None:
        """Whose login the cookie is of; None when it has expired or its key was revoked or replaced."""
        login = await find_login(self._bus, cookie)
        key = (await self._current()).get(login.key) if login is not None else None
        if login is None or key is None:
            return None
        # A login made by an earlier version has no digest; the key of the settings may be another one by now.
        same = hmac.compare_digest(login.digest, key.digest) if login.digest else key.id != GIVEN
        return _principal_of(key, login.csrf) if same and login.csrf else None

    async def exists(self, key_id: str) -> bool:
        """Whether there is a key of that id, or it is that of who needs none."""
        return key_id == LOCAL.id or key_id in await self._current()

    async def admits(self, principal: Principal) -> bool:
        """Whether ``principal`` may still come in: its key was not revoked or replaced, or it needs none still."""
        if principal.id == LOCAL.id:
            return await self.open()
        key = (await self._current()).get(principal.id)
        return key is not None and (key.digest, key.admin) == (principal.digest, principal.admin)

    async def open(self) -> bool:
        """Whether requests of this machine need no key."""
        return self._open_locally and not await self._current() and not self._closed

    async def _current(self, max_age: float = FRESH_SECONDS) -> dict[str, ApiKey]:
        async with self._reading:
            if time.monotonic() - self._read_at > max_age:
                rule = await access_rule(self._bus)
                self._known = {key.id: key for key in rule.keys} | self._given
                await self._remember(rule)
                self._read_at = time.monotonic()
        return self._known

    async def _remember(self, rule: AccessRule) -> None:
        """Close for good once there is a key; open only if the bus says so."""
        self._closed = bool(self._known) or (self._closed if rule.required is None else rule.required)
        if self._closed and not rule.lasting:
            try:
                await require_keys(self._bus)
            except ServerRefused as error:  # this process may read keys only
                logger.debug("not written to the bus: %s", error)
        if self._memory is None or self._closed == self._memory.exists():
            return
        try:
            if self._closed:
                self._memory.parent.mkdir(parents=True, exist_ok=True)
                self._memory.touch(0o600)
            else:
                self._memory.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("only the bus remembers that requests need a key: %s", error)
            self._memory = None


def _principal_of(key: ApiKey, csrf: str = "") -> Principal:
    return Principal(key.id, key.name, key.admin, key.digest, csrf)


async def require(request: Request, admin: bool = False) -> Principal:
    """Authenticate ``request``. Raises HTTPException: 401 without a key or login; 403 for a change by a login
    without its CSRF token, and when ``admin`` is set and the key is not an operator's."""
    principal = await identified(request)
    if principal is None:
        bearer_given = request.headers.get("authorization", "").lower().startswith("bearer ")
        why = "unknown_key" if bearer_given else "key_required"
        raise HTTPException(401, text(why), {"WWW-Authenticate": "Bearer"})
    if principal.csrf and request.method not in SAFE_METHODS:
        _check_token(request, principal)
    if admin and not principal.admin:
        raise HTTPException(403, text("operator_key_required"))
    return principal


async def identified(request: Request) -> Principal | None:
    """Whose key or login came with ``request``; None for a stranger. Looked up once for each request, also where the
    bus cannot be reached. Raises ServerError then."""
    state = request.scope.setdefault("state", {})
    if IDENTIFIED not in state:
        try:
            async with bus_timeout():
                state[IDENTIFIED] = await _principal(request, request.app.state.services.auth)
        except ServerError as error:
            state[IDENTIFIED] = error
    found: Principal | ServerError | None = state[IDENTIFIED]
    if isinstance(found, ServerError):
        raise found
    return found


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
    found = await services.auth.log_in(credentials.key)
    if found is None:
        raise HTTPException(401, text("unknown_key"))
    principal, cookie = found
    seconds = round(services.settings.login_hours * 3600)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite="strict", secure=secure)
    return {"name": principal.name, "admin": principal.admin, "csrf": principal.csrf}


@router.post("/logout", status_code=204, summary="Log out of the web page")
async def log_out(request: Request, response: Response, _: User) -> None:
    """Does nothing without a login."""
    await request.app.state.services.auth.log_out(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


async def _principal(request: Request, found: Authenticator) -> Principal | None:
    scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer" and (principal := await found.find(secret)):
        return principal
    cookie = request.cookies.get(COOKIE)
    if cookie and (principal := await found.logged_in(cookie)):
        return principal
    return LOCAL if is_direct(request.scope) and await found.open() else None


def _check_token(request: Request, principal: Principal) -> None:
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode(), principal.csrf.encode()):
        raise HTTPException(403, text("bad_csrf_token"))
