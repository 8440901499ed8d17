"""The web page's login: a key is traded for a cookie that scripts cannot read, and a token that other pages cannot."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field

from rolecall.frontends.http.auth import COOKIE, User
from rolecall.frontends.http.services import Here

router = APIRouter(tags=["login"])


class Credentials(BaseModel):
    """What one logs in with."""

    key: str = Field(max_length=200, examples=["rk_0123abcd_…"])


@router.post("/login", summary="Log in to the web page with an API key")
async def log_in(given: Credentials, request: Request, response: Response, here: Here) -> dict[str, Any]:
    """Sets the login's cookie; ``csrf`` goes into the header X-CSRF-Token of every later request that changes
    something. 401 for an unknown key."""
    found = await here.keys.log_in(given.key)
    if found is None:
        raise HTTPException(401, "This key is unknown or was revoked.")
    principal, cookie = found
    seconds = round(here.settings.login_hours * 3600)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    response.set_cookie(COOKIE, cookie, max_age=seconds, httponly=True, samesite="strict", secure=secure)
    return {"name": principal.name, "admin": principal.admin, "csrf": principal.csrf}


@router.post("/logout", status_code=204, summary="End the login to the web page")
async def log_out(request: Request, response: Response, here: Here, _: User) -> None:
    """Without a login nothing happens."""
    await here.keys.log_out(request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
