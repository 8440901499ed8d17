"""Errors as HTTP answers: problem+json (RFC 9457), or the errors of OpenAI under /v1 and of Ollama under /api."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, cast

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from rolecall.bus.envelope import encodable
from rolecall.errors import (
    BlobTooLarge,
    EnvelopeTooLarge,
    RolecallError,
    ServerError,
    ServerRefused,
    ServerUnavailable,
    cause_of,
)
from rolecall.frontends.texts import section

logger = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 3
BUS_SECONDS = 8.0
"""How long a request waits for an unreachable bus: long enough for its server to restart."""
UNION_TYPE = r"str|bool|int|float|list\[.*\]|dict\[.*\]"
"""What pydantic adds to the place of an error, where a field may be one of several types."""
JSON = r"application/(.+\+)?json"
OPENAI_PREFIX = "/v1/"
OLLAMA_PREFIX = "/api/"
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {
    400: "bad_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 410: "gone", 413: "request_too_large", 415: "unsupported_media_type", 422: "invalid_request",
    429: "rate_limit_exceeded", 503: "unavailable",
}  # fmt: skip
MOST_ERRORS = 100
"""Of the errors in a body, so many are told."""
NO_RETRY = {"x-should-retry": "false"}
"""Keeps OpenAI's clients, which retry every 5xx, from repeating a request that would fail the same way."""


class Problem(HTTPException):
    """Raised to end a request with an error. ``param`` names the field at fault; ``more`` is added to the answer."""

    def __init__(
        self, status: int, detail: str, code: str = "", *, param: str | None = None,
        headers: Mapping[str, str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(status, detail, dict(headers) if headers else None)
        self.code, self.param, self.more = code or CODES.get(status, "error"), param, more

    @classmethod
    def of(cls, error: StarletteHTTPException) -> Problem:
        """Any error with a status as a Problem."""
        return cls(error.status_code, str(error.detail), headers=error.headers)

    def status_at(self, path: str) -> int:
        """The status that answers a request for ``path``: OpenAI's and Ollama's clients know no 422, and get 400."""
        return 400 if self.status_code == 422 and path.startswith((OPENAI_PREFIX, OLLAMA_PREFIX)) else self.status_code

    def encode(self, path: str, request_id: str, redacted: Callable[[str], str] = str) -> tuple[str, bytes]:
        """Return the media type and the body that answer the request ``request_id`` for ``path``."""
        status, detail = self.status_at(path), redacted(str(self.detail))
        code, no_route = self.code, detail == HTTPStatus.NOT_FOUND.phrase
        if no_route and path.startswith((OPENAI_PREFIX, OLLAMA_PREFIX)):
            detail, code = text("unknown_url", url=encodable(path[:200])), "unknown_url"
        if path.startswith(OPENAI_PREFIX):
            return "application/json", msgspec.json.encode(openai_error(detail, status, code, self.param))
        if path.startswith(OLLAMA_PREFIX):
            return "application/json", msgspec.json.encode({"error": detail})
        title = HTTPStatus(status).phrase
        details = ProblemDetails(title=title, status=status, detail=detail, code=self.code, request_id=request_id)
        return "application/problem+json", msgspec.json.encode({**details.model_dump(), **self.more})


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(examples=["Too Many Requests"])
    status: int = Field(examples=[429])
    detail: str = Field(examples=["Too many messages are waiting in this conversation. Try again after an answer."])
    code: str = Field(examples=["full"])
    request_id: str = Field("", description="as in the header X-Request-Id and in the server's log")


@asynccontextmanager
async def bus_timeout() -> AsyncIterator[None]:
    """Raise ServerUnavailable when the block takes longer than a request may wait for the bus."""
    try:
        async with asyncio.timeout(BUS_SECONDS):
            yield
    except TimeoutError:
        raise ServerUnavailable(f"the bus did not answer within {BUS_SECONDS:g} s") from None


def text(key: str, **values: object) -> str:
    """A text of the section ``[http]`` of texts.toml, with ``values`` put in."""
    return section("http")[key].format(**values)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route that may fail with ``statuses``; 401 and 503 are always included."""
    return {
        status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase} for status in (*statuses, 401, 503)
    }


def add_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error it can explain as a problem; the boundary around it answers the others."""
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RolecallError, _not_accepted)
    app.add_exception_handler(ServerError, _unavailable)
    app.add_exception_handler(ExceptionGroup, _first_of_group)


def openai_error(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """An error object as OpenAI's clients expect it."""
    kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _response(request: Request, problem: Problem) -> Response:
    path, state = request.url.path, request.scope.get("state", {})
    media_type, body = problem.encode(path, state.get("request_id", ""), state.get("redacted", str))
    return Response(body, problem.status_at(path), problem.headers, media_type)


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return _response(request, error)
    assert isinstance(error, StarletteHTTPException)
    if error.status_code == HTTPStatus.NO_CONTENT:
        return Response(status_code=error.status_code, headers=error.headers)
    if error.status_code == HTTPStatus.BAD_REQUEST and isinstance(error.__cause__, ValueError | RecursionError):
        return _response(request, Problem(400, text("unreadable_json"), "invalid_json"))
    return _response(request, Problem.of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if (unread := _unread(request, error)) is not None:
        return _response(request, unread)
    # Where a field may be one of several types, the deepest error is that of the type that was meant.
    errors = sorted(error.errors(), key=lambda one: -len(one["loc"]))[:MOST_ERRORS]
    found = [{"field": _field(one["loc"]), "message": str(one["msg"])} for one in errors]
    first = found[0]
    detail = f"{first['field'] or 'body'}: {first['message']}"
    return _response(request, Problem(422, detail, "invalid_request", param=first["field"] or None, errors=found))


def _unread(request: Request, error: RequestValidationError) -> Problem | None:
    """Why the body could not be read at all, if that is it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    for one in error.errors():
        if one["loc"] == ("body",) and one["type"] != "missing" and not re.fullmatch(JSON, media_type):
            given = repr(media_type[:80]) if media_type else "none"
            return Problem(415, text("not_json_type", given=given), "unsupported_media_type")
        if one["type"] == "json_invalid":
            return Problem(400, text("not_json", position=one["loc"][-1]), "invalid_json")
    return None


async def _not_accepted(request: Request, error: Exception) -> Response:
    status = 413 if isinstance(error, BlobTooLarge | EnvelopeTooLarge) else 422
    return _response(request, Problem(status, text("not_accepted", reason=encodable(str(error)))))


async def _unavailable(request: Request, error: Exception) -> Response:
    if isinstance(error, ServerRefused) and error.code != "NOPERM":
        raise error
    if isinstance(error, ServerRefused):
        logger.warning("%s %s: %s", request.method, request.url.path, error)
        return _response(request, Problem(403, text("not_permitted"), "bus_forbidden"))
    logger.info("%s %s: %s", request.method, request.url.path, error)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return _response(request, Problem(503, text("unavailable"), "bus_unavailable", headers=retry))


async def _first_of_group(request: Request, error: Exception) -> Response:
    """What several tasks raised together is answered as one error."""
    cause = cause_of(error)
    for kind in type(cause).__mro__:
        if handler := request.app.exception_handlers.get(kind):
            return cast(Response, await handler(request, cause))
    raise cause


def _field(location: Sequence[Any]) -> str:
    names = location[1:] if location and location[0] in ("body", "query", "path", "header") else location
    return encodable(".".join(str(name) for name in names if not re.fullmatch(UNION_TYPE, str(name))))
