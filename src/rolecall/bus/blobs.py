"""Blobs: images and files, stored on the server for a while. Envelopes only carry their ids."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass

import msgspec

from rolecall.bus.bus import Bus
from rolecall.errors import BlobTooLarge, RolecallError, ServerFull
from rolecall.redis.scripts import milliseconds
from rolecall.redis.server import text_map

MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[A-Za-z0-9.+_-]{1,100}", re.ASCII)
IMAGES = (
    (b"\x89PNG\r\n\x1a\n", b"", "image/png"), (b"\xff\xd8\xff", b"", "image/jpeg"), (b"GIF8", b"", "image/gif"),
    (b"RIFF", b"WEBP", "image/webp"),
)  # fmt: skip
"""How images begin, what they have at byte 8, and their media types."""
IMAGE_TYPES = tuple(kind for _, _, kind in IMAGES)
SOUNDS = (
    (0, b"OggS", "audio/ogg"), (0, b"fLaC", "audio/flac"), (0, b"RIFF", "audio/wav"), (0, b"ID3", "audio/mpeg"),
    (0, b"\x1aE\xdf\xa3", "audio/webm"), (4, b"ftyp", "audio/mp4"), (0, b"\xff\xf1", "audio/aac"),
    (0, b"\xff\xf9", "audio/aac"), (0, b"\xff\xfb", "audio/mpeg"), (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\xff\xf2", "audio/mpeg"), (0, b"#!AMR", "audio/amr"), (0, b"caff", "audio/x-caf"),
    (0, b"FORM", "audio/aiff"), (0, b"0&\xb2u", "audio/x-ms-wma"),
)  # fmt: skip
"""The containers of recordings: where their marks are, the marks, and the media types."""
UNHEARD = frozenset({"audio/aac", "audio/amr", "audio/x-caf", "audio/aiff", "audio/x-ms-wma"})
"""Containers that models which transcribe do not open."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An image or a file."""

    id: str
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Blobs:
    """Stores blobs for ``hours``. A blob lives in the shard of its conversation and is only found under that
    conversation's name. Each has at most BLOB_MEGABYTES."""

    bus: Bus
    hours: float = 24

    async def put(self, conversation: str, data: bytes, media_type: str) -> str:
        """Store ``data`` and return its id. The same data has the same id, so a repeated message stays identical.

        Raises BlobTooLarge, and RolecallError for an invalid media type or when the server is full.
        """
        self.check_size(len(data))
        if not MEDIA_TYPE.fullmatch(media_type):
            raise RolecallError(f"{media_type[:80]!r} is not a media type: expected one such as image/png")
        value, key = media_type.encode() + b"\n" + data, self.bus.shard(conversation).blob
        blob_id = hashlib.sha256(conversation.encode() + b"\0" + value).hexdigest()[:32]
        try:
            await self.bus.server.fetch("SET", key(blob_id), value, "PX", milliseconds(self.hours * 3_600))
        except ServerFull:
            raise RolecallError("the server has no room for files right now; try again in a minute") from None
        return blob_id

    async def get(self, conversation: str, blob_id: str) -> Blob | None:
        """The blob with that id, or None if it does not exist or has expired."""
        value: bytes | None = await self.bus.server.fetch("GET", self.bus.shard(conversation).blob(blob_id))
        if value is None or hashlib.sha256(conversation.encode() + b"\0" + value).hexdigest()[:32] != blob_id:
            return None
        media_type, _, data = value.partition(b"\n")
        return Blob(blob_id, media_type.decode(), data)

    async def delete(self, conversation: str, blob_id: str) -> None:
        """Delete a blob. Idempotent."""
        await self.bus.server.fetch("DEL", self.bus.shard(conversation).blob(blob_id))

    def check_size(self, size: int) -> None:
        """Raise BlobTooLarge if ``size`` bytes are too many, for example before a download."""
        if size > self.bus.settings.blob_megabytes * 1024 * 1024:
            raise BlobTooLarge(
                f"the file has {size / 1024 / 1024:,.1f} MB; the limit is {self.bus.settings.blob_megabytes} MB"
            )


class StoredFile(msgspec.Struct, frozen=True):
    """A blob that its owner uploaded to use it in several messages; times in seconds since the epoch. ``blob`` is its
    own blob if it is stored apart, else the file's id is that of its blob."""

    id: str
    name: str
    media_type: str
    size: int
    purpose: str
    created: int
    expires: int
    blob: str = ""


@dataclass(frozen=True)
class Files:
    """The files of ``owner``, the name of a conversation that nobody talks in: at most ``most`` bytes together."""

    bus: Bus
    owner: str
    most: int

    async def store(
        self, data: bytes, name: str, media_type: str, purpose: str, seconds: int, *, apart: bool = False
    ) -> StoredFile:
        """Store a file for that long. The same data has the same id, unless it is stored ``apart``. Raises
        BlobTooLarge, also when the files together would be too large, and RolecallError as Blobs.put does."""
        others = await self.list()
        if sum(file.size for file in others) + len(data) > self.most:
            raise BlobTooLarge(f"your files may have {self.most // 1024**2} MB together; delete some")
        own = secrets.token_hex(16) if apart else ""
        blob = await Blobs(self.bus, seconds / 3600).put(self._place(own), data, media_type)
        now = int(time.time())
        file = StoredFile(
            own or blob, name, media_type, len(data), purpose, now, now + seconds, blob if apart else ""
        )  # fmt: skip
        last = max(one.expires for one in (*others, file))
        await self.bus.server.fetch("HSET", self._key, file.id, msgspec.json.encode(file))
        await self.bus.server.fetch("PEXPIRE", self._key, milliseconds(last - now))
        return file

    async def list(self) -> list[StoredFile]:
        """The files, newest first. Forgets those that have expired."""
        stored = text_map(await self.bus.server.fetch("HGETALL", self._key))
        files = [msgspec.json.decode(raw, type=StoredFile) for raw in stored.values()]
        if gone := [file.id for file in files if file.expires <= time.time()]:
            await self.bus.server.fetch("HDEL", self._key, *gone)
        return sorted((file for file in files if file.id not in gone), key=lambda file: (-file.created, file.id))

    async def find(self, file_id: str) -> tuple[StoredFile, bytes] | None:
        """A file and its data; None if there is none of that id, any more or ever."""
        if (file := await self._known(file_id)) is None:
            return None
        blob = await Blobs(self.bus).get(*self._blob_of(file))
        return (file, blob.data) if blob is not None else None

    async def delete(self, file_id: str) -> None:
        """Delete a file. Idempotent."""
        file = await self._known(file_id)
        await self.bus.server.fetch("HDEL", self._key, file_id)
        if file is not None:
            await Blobs(self.bus).delete(*self._blob_of(file))

    async def _known(self, file_id: str) -> StoredFile | None:
        return next((file for file in await self.list() if file.id == file_id), None)

    def _blob_of(self, file: StoredFile) -> tuple[str, str]:
        """In whose name the blob of ``file`` is stored, and its id."""
        return (self._place(file.id), file.blob) if file.blob else (self.owner, file.id)

    def _place(self, own: str) -> str:
        """The conversation in whose name a blob is stored; ``own`` is the id of a file that is stored apart."""
        return f"{self.owner}:{own}" if own else self.owner

    @property
    def _key(self) -> str:
        return self.bus.shard(self.owner).files(self.owner)


async def forget_files(bus: Bus, owner: str) -> None:
    """Forget which files ``owner`` has; the blobs expire. Idempotent."""
    await bus.server.fetch("DEL", bus.shard(owner).files(owner))


def image_type(start: bytes) -> str:
    """The media type of an image by its first 12 bytes; empty if it is none that models read."""
    matching = (kind for begins, later, kind in IMAGES if start.startswith(begins) and start[8:].startswith(later))
    return next(matching, "")


def sound_type(data: bytes, claimed: str) -> str:
    """The media type of a recording: by its container, else as ``claimed``, without parameters."""
    known = (kind for at, mark, kind in SOUNDS if data.startswith(mark, at))
    return next(known, claimed.partition(";")[0].strip().lower())
