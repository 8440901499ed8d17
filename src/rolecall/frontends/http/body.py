"""The body of a request: how long it may be and take, and the pictures in it.

Pictures are taken out of the JSON while it arrives, so that only its text is held in memory.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Annotated, cast

from fastapi import Depends, Request, UploadFile
from starlette.types import Message, Receive, Scope

from rolecall.frontends.http.auth import Principal
from rolecall.frontends.http.problems import Problem, text
from rolecall.settings import Settings

BODY_BYTES = 256 * 1024
"""Limit of a request's body, but for the routes in LARGE."""
LARGE = ("/chat", "/v1/", "/api/", "/a2a")
FORMS = ("/v1/files", "/v1/audio/transcriptions")
"""The routes that take a file in a form, of up to BLOB_MEGABYTES."""
LARGE_BYTES = 16 * 1024 * 1024
"""Limit of the body of a POST there, without its pictures. Beyond BODY_BYTES the sender has to be known."""
PICTURES_MEGABYTES = 50
"""Limit of the pictures of one request together, unless BLOB_MEGABYTES is more."""
SLOWEST = 32 * 1024
"""Bytes per second that a large body has to bring, once its beginning was there in time."""
LARGE_VALUES = 150_000
"""Limit of the values in a large body: each takes some hundred bytes of memory once it is read."""
LARGE_AT_ONCE, LARGE_OF_ONE = 8, 4
"""Large bodies that are read at a time, and those of one key among them: slow ones may take half an hour."""
UPLOADS = "uploads"
"""The state of a request holds its pictures under this name."""
PIECE_BYTES = 64 * 1024
OPENING = re.compile(
    rb"data:(image\\?/(?:png|jpeg|gif|webp)|application\\?/(?:pdf|vnd\.openxmlformats-officedocument\.[a-z.]{1,60}));base64,"
)
LONGEST_OPENING = 120
INLINE_BYTES = 64 * 1024
"""A data URL up to this length stays in the text. A longer one could not be a text in its own right either."""
IN_MEMORY = 1024 * 1024
NAME_CHARS = 200
ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}
HALF = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F]..(?<!\\u[dD][89abAB]..\\u[dD][c-fC-F]..))", re.DOTALL
)
"""What may be an escape in JSON of one half of a surrogate pair that stands alone."""
STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class BodyReader:
    """Reads the bodies of requests. ``authenticate`` returns whose key a request came with, and raises HTTPException
    unless that is known."""

    def __init__(self, settings: Settings, authenticate: Callable[[Scope], Awaitable[Principal]]) -> None:
        self._seconds = settings.http_read_seconds
        self._picture = settings.blob_megabytes * 1024 * 1024
        self._pictures = max(settings.blob_megabytes, PICTURES_MEGABYTES) * 1024 * 1024
        self._authenticate = authenticate
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._own: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(LARGE_OF_ONE))

    async def received(self, scope: Scope, receive: Receive) -> Receive:
        """What a route reads the body from, once it was read here. Only the forms of FORMS, of senders that are known,
        are read as they arrive, by a route that writes their files to disk. Raises Problem as ``read`` does."""
        if scope["method"] == "POST" and scope["path"] in FORMS:
            await self._authenticate(scope)
            return self._metered(receive)
        return _replay(whole_pairs(await self.read(scope, receive)), receive)

    def _metered(self, receive: Receive) -> Receive:
        """``receive`` with the limits of a form: its size, and the time for each of its pieces."""
        size, most = 0, self._picture + BODY_BYTES

        async def metered() -> Message:
            nonlocal size
            try:
                async with asyncio.timeout(self._seconds):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            size += len(message.get("body", b""))
            if size > most:
                raise _too_large(self._picture)
            return message

        return metered

    def _too_slow(self) -> Problem:
        return Problem(408, text("request_too_slow", seconds=f"{self._seconds:g}"), "request_timeout")

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body without its long pictures, which are in the request's state as ``uploads``. Raises Problem as
        soon as it is known to be too large, or when it takes too long."""
        large = scope["method"] == "POST" and scope["path"].startswith(LARGE)
        most = LARGE_BYTES + self._pictures * 4 // 3 if large else BODY_BYTES
        announced = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"content-length"), "")
        if announced.isdigit() and int(announced) > most:
            raise _too_large(LARGE_BYTES + self._pictures if large else BODY_BYTES)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                beginning, more = await _beginning(receive)
                if len(beginning) <= BODY_BYTES:
                    return beginning
                if not large:
                    raise _too_large(BODY_BYTES)
                who = await self._authenticate(scope)
                async with self._own[who.id], self._large:
                    return await self._rest(scope, receive, beginning, more, limit)
        except TimeoutError:
            raise self._too_slow() from None

    async def _rest(
        self, scope: Scope, receive: Receive, beginning: bytes, more: bool, limit: asyncio.Timeout
    ) -> bytes:
        scanner, piece = UploadScanner(self._picture, self._pictures), bytearray(beginning)
        scope.setdefault("state", {})[UPLOADS] = scanner.uploads
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._seconds
        while piece or more:
            if len(piece) >= PIECE_BYTES or not more:
                scanner.feed(bytes(piece))
                piece.clear()
                if len(scanner.document) > LARGE_BYTES:
                    raise _too_large(LARGE_BYTES)
            if more:
                message = await receive()
                data, more = message.get("body", b""), _goes_on(message)
                piece += data
                deadline += len(data) / SLOWEST
                limit.reschedule(min(deadline, clock() + self._seconds))
        scanner.close()
        return bytes(scanner.document)


def whole_pairs(document: bytes) -> bytes:
    """The JSON ``document`` with a question mark for each half of a surrogate pair that stands alone, as of an emoji
    that a client cut in two: nothing can be written that holds one."""
    if HALF.search(document):
        with suppress(ValueError, RecursionError):  # it is no JSON, which the parser says best
            return json.dumps(json.loads(document), ensure_ascii=False).encode("utf-8", "replace")
    return document


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns the body once, and then whatever comes next: the end of the connection."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed


async def _beginning(receive: Receive) -> tuple[bytes, bool]:
    """The body up to its end or a bit more than BODY_BYTES, and whether it goes on."""
    body, more = bytearray(), True
    while more and len(body) <= BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = _goes_on(message)
    return bytes(body), more


def _goes_on(message: Message) -> bool:
    return message["type"] == "http.request" and bool(message.get("more_body", False))


def _too_large(limit: int) -> Problem:
    shown = f"{limit // 1024} kB" if limit < 1024**2 else f"{limit // 1024**2} MB"
    return Problem(413, text("body_too_large", limit=shown))


@dataclass(frozen=True)
class Upload:
    """A picture that came with a request; ``file`` holds its bytes, on disk if there are many."""

    media_type: str
    file: IO[bytes] = field(repr=False)

    def read(self) -> bytes:
        """All of it."""
        self.file.seek(0)
        return self.file.read()


def file_name(file: UploadFile) -> str:
    """The name of a file in a form, without the escapes that clients put into it (WHATWG HTML, "multipart form data");
    empty if it has none."""
    name = file.filename or ""
    for escape, char in ESCAPES.items():
        name = name.replace(escape, char)
    return name[:NAME_CHARS]


def uploads_of(scope: Scope) -> Mapping[str, Upload]:
    """The pictures that came with a request."""
    return cast(Mapping[str, Upload], scope.get("state", {}).get(UPLOADS, {}))


def close_uploads(scope: Scope) -> None:
    """Forget the pictures that came with a request."""
    for upload in uploads_of(scope).values():
        upload.file.close()


def _uploads(request: Request) -> MutableMapping[str, Upload]:
    found: MutableMapping[str, Upload] = request.scope.setdefault("state", {}).setdefault(UPLOADS, {})
    return found


Uploads = Annotated[MutableMapping[str, Upload], Depends(_uploads)]
"""The pictures that the BodyReader took out of the body, by the names that stand there instead."""


class UploadScanner:
    """Reads a JSON document piece by piece. ``document`` is what it holds besides the long data URLs of pictures; each
    of these is replaced by a name in ``uploads``, which no client can guess.

    A picture may have ``limit`` bytes, all together ``total``, and the document LARGE_VALUES. These raise Problem (413)
    as soon as they are exceeded.
    """

    def __init__(self, limit: int, total: int) -> None:
        self.document = bytearray()
        self.uploads: dict[str, Upload] = {}
        self._limit, self._total = limit, total
        self._size = self._values = 0
        self._rest = b""
        self._read = self._outside
        self._picture: _Picture | None = None

    def feed(self, chunk: bytes) -> None:
        """Read the next piece. Raises Problem."""
        data = self._rest + chunk
        self._rest = b""
        at: int | None = 0
        while at is not None and at < len(data):
            at = self._read(data, at)

    def close(self) -> None:
        """End the document; what is open by then makes it invalid JSON, which the parser says best."""
        self.document += self._rest
        self._rest = b""

    # Each of these reads ``data`` from ``at`` on. It returns where the next one goes on, None when it needs more.

    def _outside(self, data: bytes, at: int) -> int | None:
        end = data.find(b'"', at)
        between = data[at : end + 1] if end >= 0 else data[at:]
        self._values += between.count(b",") + between.count(b"[") + between.count(b"{")
        if self._values > LARGE_VALUES:
            raise Problem(413, text("body_values", count=f"{LARGE_VALUES:,}"))
        self.document += between
        if end < 0:
            return None
        self._read = self._string_start
        return end + 1

    def _string_start(self, data: bytes, at: int) -> int | None:
        opening = OPENING.match(data, at)
        if opening is not None:
            self._read = self._short
            return at
        if len(data) - at < LONGEST_OPENING and b'"' not in data[at:]:
            return self._wait(data, at)
        self._read = self._string
        return at

    def _string(self, data: bytes, at: int) -> int | None:
        found = STRING.match(data, at)
        end = found.end() if found else at
        self.document += data[at:end]
        if end == len(data) or data[end : end + 1] != b'"':
            return self._wait(data, end)  # the end, or a backslash whose character is still to come
        self.document += b'"'
        self._read = self._outside
        return end + 1

    def _short(self, data: bytes, at: int) -> int | None:
        """A data URL that may turn out to be short."""
        if data.find(b'"', at, at + INLINE_BYTES) >= 0:
            self._read = self._string
            return at
        if len(data) - at < INLINE_BYTES:
            return self._wait(data, at)
        opening = OPENING.match(data, at)
        assert opening is not None
        self._picture = _Picture(opening[1].replace(b"\\", b"").decode())
        self.uploads[self._picture.name] = Upload(self._picture.media_type, self._picture.file)
        self._read = self._base64
        return opening.end()

    def _base64(self, data: bytes, at: int) -> int | None:
        picture = self._picture
        assert picture is not None
        end = data.find(b'"', at)
        stop = len(data) if end < 0 else end
        if end < 0 and data.endswith(b"\\"):
            stop -= 1
        self._size += picture.add(data[at:stop])
        if end >= 0:
            self._size += picture.add(b"", last=True)
        if picture.size > self._limit:
            raise Problem(413, text("image_too_large", limit=self._limit // 1024**2), "image_too_large", param="images")
        if self._size > self._total:
            raise Problem(
                413, text("images_too_large", limit=self._total // 1024**2), "image_too_large", param="images"
            )
        if end < 0:
            return self._wait(data, stop)
        self.document += picture.name.encode() + b'"'
        self._read, self._picture = self._outside, None
        return end + 1

    def _wait(self, data: bytes, at: int) -> int | None:
        self._rest = data[at:]
        return None


class _Picture:
    """The picture that is being read."""

    def __init__(self, media_type: str) -> None:
        self.name = f"upload:{secrets.token_hex(16)}"
        self.media_type = media_type
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # close_uploads closes it
        self.size = 0
        self._rest = b""

    def add(self, encoded: bytes, last: bool = False) -> int:
        """Decode the next piece; returns how many bytes it has. Raises Problem for anything but base64."""
        encoded = self._rest + encoded.replace(b"\\/", b"/")
        whole = len(encoded) if last else len(encoded) - 4 - len(encoded) % 4
        self._rest = b"" if last else encoded[max(0, whole) :]
        try:
            decoded = binascii.a2b_base64(encoded[: max(0, whole)], strict_mode=True)
        except binascii.Error:
            raise Problem(422, text("bad_base64")) from None
        self.file.write(decoded)
        self.size += len(decoded)
        return len(decoded)
