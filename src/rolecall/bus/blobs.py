"""Blobs: images and files, stored on the server for a while. Envelopes only carry their ids."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from rolecall.bus.bus import Bus
from rolecall.errors import BlobTooLarge, RolecallError, ServerFull
from rolecall.redis.scripts import milliseconds

MEDIA_TYPE = re.compile(r"[a-z0-9.+-]{1,60}/[A-Za-z0-9.+_-]{1,100}", re.ASCII)


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
            await self.bus.server.call("SET", key(blob_id), value, "PX", milliseconds(self.hours * 3_600))
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

    def check_size(self, size: int) -> None:
        """Raise BlobTooLarge if ``size`` bytes are too many, for example before a download."""
        if size > self.bus.settings.blob_megabytes * 1024 * 1024:
            raise BlobTooLarge(
                f"the file has {size / 1024 / 1024:,.1f} MB; the limit is {self.bus.settings.blob_megabytes} MB"
            )
