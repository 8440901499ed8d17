"""What comes with a message besides its text: images, documents, voice, and the message it replies to.

A payload lists ``images`` (ids of blobs) and ``files`` ({blob, name, type}); ``quoted`` is {from, text}; ``forwarded``
is who sent the files first, if somebody else did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolecall.bus.blobs import Blob, Blobs
from rolecall.bus.foreign_text import as_data

LOST = "(this file has expired)"


@dataclass(frozen=True, slots=True)
class Document:
    """A document as text."""

    name: str
    text: str


@dataclass(frozen=True)
class Attachments:
    """Fetches the blobs that payloads of one conversation refer to."""

    blobs: Blobs
    conversation: str

    async def images(self, payload: Mapping[str, Any]) -> tuple[bytes, ...]:
        """The images as whole encoded files; expired ones are left out."""
        found = [await self.blobs.get(self.conversation, str(one)) for one in _listed(payload, "images")]
        return tuple(blob.data for blob in found if blob)

    async def documents(self, payload: Mapping[str, Any]) -> tuple[Document, ...]:
        """The text files; an expired one has a note instead of its text."""
        return tuple([
            Document(str(one.get("name", "")), blob.data.decode("utf-8", "replace") if blob else LOST)
            for one, blob in await self._files(payload, "text/")
        ])  # fmt: skip

    async def sounds(self, payload: Mapping[str, Any]) -> tuple[Blob, ...]:
        """The voice messages and other recordings; expired ones are left out."""
        found = [*await self._files(payload, "audio/"), *await self._files(payload, "video/")]
        return tuple(blob for _, blob in found if blob)

    async def _files(self, payload: Mapping[str, Any], kind: str) -> list[tuple[Mapping[str, Any], Blob | None]]:
        wanted = [one for one in _listed(payload, "files") if isinstance(one, dict)]
        wanted = [one for one in wanted if str(one.get("type", "")).startswith(kind)]
        return [(one, await self.blobs.get(self.conversation, str(one.get("blob", "")))) for one in wanted]


def in_context(question: str, documents: tuple[Document, ...], payload: Mapping[str, Any]) -> str:
    """``question`` preceded by the documents that came with it and the message it replies to."""
    parts = [as_data("document", one.text, name=one.name) for one in documents]
    quoted = payload.get("quoted")
    if isinstance(quoted, dict) and quoted.get("text"):
        parts.append(as_data("quoted", str(quoted["text"]), **{"from": str(quoted.get("from") or "you")}))
    return "\n\n".join([*parts, question] if question else parts)


def spoken(words: str, payload: Mapping[str, Any]) -> str:
    """The words of a recording: those of the user, or marked as those of whom it was forwarded from."""
    origin = payload.get("forwarded")
    return as_data("forwarded", words, **{"from": str(origin)}) if origin and words else words


def _listed(payload: Mapping[str, Any], name: str) -> list[Any]:
    found = payload.get(name)
    return found if isinstance(found, list) else []
