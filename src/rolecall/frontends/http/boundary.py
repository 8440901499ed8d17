"""The boundary of a request: whatever it does ends in one answer, with an id, counted, and without a secret."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rolecall.frontends.http.problems import RETRY_AFTER_SECONDS, Problem, text

logger = logging.getLogger(__name__)
LINGER_SECONDS = 2.0
"""How long the rest of a rejected body is read and discarded, so that its sender gets to read the answer."""
UNREAD = (408, 413, 431)
"""After these the rest of the request may still be coming: the connection cannot be used again."""
REQUEST_ID = "x-request-id"
ORIGIN = re.compile(rb"https?://[^/]+(?=/)")
"""How a Location begins that FastAPI makes for a path with a slash at its end. Behind a proxy, clients know this server
by another scheme, host or port, so that only the path is told."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Added to every answer that does not set them itself."""


class RequestBoundary:
    """ASGI middleware around everything else. ``count`` is called with the status of every answer; ``redacted`` removes
    known secrets from a text.

    An HTTPException that escapes ``app`` is its answer. Any other exception is a 500, and in the log with the request's
    id. A request that is cancelled because the server ends is a 503.
    """

    def __init__(self, app: ASGIApp, count: Callable[[int], None], redacted: Callable[[str], str]) -> None:
        self._app, self._count, self._redacted = app, count, redacted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        head_only = scope["method"] == "HEAD"
        if head_only:  # what GET answers, up to its body
            scope = {**scope, "method": "GET"}
        answer = _Answer(send, f"req_{secrets.token_hex(12)}", self._count, head_only)
        scope.setdefault("state", {}).update(request_id=answer.request_id, redacted=self._redacted)
        try:
            await self._app(scope, receive, answer)
        except HTTPException as error:
            problem = error if isinstance(error, Problem) else Problem.of(error)
            await self._end(problem, answer, scope, receive)
        except asyncio.CancelledError:
            retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            await self._end(Problem(503, text("stopping"), "server_stopping", headers=retry), answer, scope, receive)
        except BaseException as error:  # the boundary: what one request does must not reach another
            logger.error("%s %s %s failed", answer.request_id, scope["method"], scope["path"], exc_info=error)
            await self._end(Problem(500, text("unexpected")), answer, scope, receive)

    async def _end(self, problem: Problem, answer: _Answer, scope: Scope, receive: Receive) -> None:
        """Answer with ``problem``. An answer that has begun is left as it is: the connection then closes too early,
        which is how the client learns of it."""
        if answer.started:
            return
        media_type, body = problem.encode(scope["path"], answer.request_id, self._redacted)
        status = problem.status_at(scope["path"])
        fields = {"content-type": media_type, "content-length": str(len(body)), **(problem.headers or {})}
        if status in UNREAD:
            fields["connection"] = "close"
        headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await answer({"type": "http.response.start", "status": status, "headers": headers})
        await answer({"type": "http.response.body", "body": body, "more_body": True})
        if status == 413:
            await _discard(receive)
        await answer({"type": "http.response.body", "body": b""})


class _Answer:
    """Passes an answer on with the request's id and HEADERS. With ``head_only`` it ends before the body, which a stream
    takes as the disconnection of its client."""

    def __init__(self, send: Send, request_id: str, count: Callable[[int], None], head_only: bool) -> None:
        self.request_id = request_id
        self.started = False
        self._send, self._count, self._head_only = send, count, head_only

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._count(message["status"])
            given = [(n, ORIGIN.sub(b"", v, 1) if n == b"location" else v) for n, v in message.get("headers", ())]
            present = {name.lower() for name, _ in given}
            added = {REQUEST_ID: self.request_id, **HEADERS}
            missing = [(n.encode(), v.encode()) for n, v in added.items() if n.encode() not in present]
            await self._send({**message, "headers": [*given, *missing]})
            if self._head_only:
                await self._send({"type": "http.response.body", "body": b""})
        elif not self._head_only:
            await self._send(message)


async def _discard(receive: Receive) -> None:
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        return
