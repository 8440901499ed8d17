"""Blobs: images and files, kept beside the bus for a time. Envelopes carry their ids alone."""

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
    """Puts blobs away for ``hours`` and gets them back. A blob is in the shard of its conversation, and only with that
    conversation's name it is found. At most BLOB_MEGABYTES each."""

    bus: Bus
    hours: float = 24

    async def put(self, conversation: str, data: bytes, media_type: str) -> str:
        """Put ``data`` away and return its id: the same for the same data, so that a repeated message stays the same.

        Raises BlobTooLarge, and RolecallError for what is no media type or when the server is full.
        """
        self.check_size(len(data))
        if not MEDIA_TYPE.fullmatch(media_type):
            raise RolecallError(f"{media_type[:80]!r} is no media type: one reads like image/png")
        value, key = media_type.encode() + b"\n" + data, self.bus.shard(conversation).blob
        blob_id = hashlib.sha256(conversation.encode() + b"\0" + value).hexdigest()[:32]
        try:
            await self.bus.server.call("SET", key(blob_id), value, "PX", milliseconds(self.hours * 3_600))
        except ServerFull:
            raise RolecallError("the server has no room for files at the moment; try again in a minute") from None
        return blob_id

    async def get(self, conversation: str, blob_id: str) -> Blob | None:
        """The blob, or None when there is none of that id, or not any more."""
        value: bytes | None = await self.bus.server.fetch("GET", self.bus.shard(conversation).blob(blob_id))
        if value is None or hashlib.sha256(conversation.encode() + b"\0" + value).hexdigest()[:32] != blob_id:
            return None
        media_type, _, data = value.partition(b"\n")
        return Blob(blob_id, media_type.decode(), data)

    def check_size(self, size: int) -> None:
        """Raise BlobTooLarge for more bytes than are allowed, say before a file is fetched."""
        if size > self.bus.settings.blob_megabytes * 1024 * 1024:
            raise BlobTooLarge(
                f"the file has {size / 1024 / 1024:,.1f} MB; {self.bus.settings.blob_megabytes} MB are allowed"
            )
