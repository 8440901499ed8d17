"""What goes wrong, as HTTP tells it: problem+json (RFC 9457), or OpenAI's error objects below /v1."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from rolecall.errors import (
    BlobTooLarge,
    EnvelopeTooLarge,
    RolecallError,
    ServerError,
    ServerRefused,
    ServerUnavailable,
)

logger = logging.getLogger(__name__)
AWAY_SECONDS = 3
BUS_SECONDS = 8.0
"""How long a request waits for a bus that is away: long enough for a server that is started again."""
OPENAI = "/v1/"
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    400: "bad_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 410: "gone", 413: "request_too_large", 422: "invalid_request", 429: "rate_limit_exceeded",
    503: "unavailable",
}  # fmt: skip
DOES_NOT_HELP = {"x-should-retry": "false"}
"""Tells OpenAI's clients, which try again at every 5xx, that it would only be the same."""


class Problem(HTTPException):
    """Raised to end a request with ``status``; ``param`` is the field it is about, ``more`` goes into the answer."""

    def __init__(
        self, status: int, detail: str, code: str = "", *, param: str | None = None,
        headers: Mapping[str, str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(status, detail, dict(headers) if headers else None)
        self.code, self.param, self.more = code, param, more


class ProblemDetails(BaseModel):
    """Why a request was not carried out (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(examples=["Too Many Requests"])
    status: int = Field(examples=[429])
    detail: str = Field(examples=["I am still busy with your earlier messages; this one was not taken."])
    code: str = Field(examples=["full"])


@asynccontextmanager
async def promptly() -> AsyncIterator[None]:
    """Raise ServerUnavailable when what is done here takes longer than a request may wait for the bus."""
    try:
        async with asyncio.timeout(BUS_SECONDS):
            yield
    except TimeoutError:
        raise ServerUnavailable(f"the bus did not answer within {BUS_SECONDS:g} s") from None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an OpenAPI document says of the problems a route may answer with."""
    return {
        status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase} for status in (*statuses, 401, 503)
    }


def install(app: FastAPI) -> None:
    """Let ``app`` answer every error this way. What nobody foresaw is a 500 that tells nothing; the log does."""
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RolecallError, _ours)
    app.add_exception_handler(ServerError, _away)
    app.add_exception_handler(Exception, _unforeseen)


def answer(request: Request, problem: Problem) -> Response:
    """The answer to ``request`` that tells of ``problem``."""
    status = problem.status_code
    code = problem.code or CODES.get(status, "error")
    headers = dict(problem.headers or {})
    if request.url.path.startswith(OPENAI):
        body = openai_error(str(problem.detail), status, code, problem.param)
        return Response(msgspec.json.encode(body), status, headers, "application/json")
    told = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=str(problem.detail), code=code)
    return Response(
        msgspec.json.encode({**told.model_dump(), **problem.more}), status, headers, "application/problem+json"
    )


def openai_error(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """An error object as OpenAI's clients read it."""
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return answer(request, error)
    assert isinstance(error, AnyHTTPException)
    return answer(request, Problem(error.status_code, str(error.detail), headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [{"field": _field(one["loc"]), "message": str(one["msg"])} for one in error.errors()]
    first = found[0]
    detail = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    status = 400 if request.url.path.startswith(OPENAI) else 422
    return answer(request, Problem(status, detail, "invalid_request", param=first["field"] or None, errors=found))


async def _ours(request: Request, error: Exception) -> Response:
    status = 413 if isinstance(error, BlobTooLarge | EnvelopeTooLarge) else 422
    return answer(request, Problem(status, f"This was not taken: {_harmless(str(error))}."))


async def _away(request: Request, error: Exception) -> Response:
    if isinstance(error, ServerRefused):
        raise error
    logger.info("%s %s: %s", request.method, request.url.path, error)
    detail = "The bus cannot be reached at the moment. Try again soon; with an Idempotency-Key nothing is done twice."
    return answer(request, Problem(503, detail, "bus_unavailable", headers={"Retry-After": str(AWAY_SECONDS)}))


async def _unforeseen(request: Request, error: Exception) -> Response:
    return answer(request, Problem(500, "Something unforeseen went wrong here; the server's log tells what."))


def _field(location: Sequence[Any]) -> str:
    names = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return _harmless(".".join(str(name) for name in names))


def _harmless(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
