"""Files on their way out."""

from __future__ import annotations

from dataclasses import dataclass

PHOTOS = {"image/png", "image/jpeg", "image/webp"}
PHOTO_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class File:
    """An image or a document on its way out."""

    data: bytes
    media_type: str
    name: str

    @property
    def is_photo(self) -> bool:
        """Whether Telegram may show it as a photo."""
        return self.media_type in PHOTOS and len(self.data) <= PHOTO_BYTES
