"""What comes with a message besides its text: images, documents, voice, and the message it replies to.

A payload lists ``images`` (ids of blobs) and ``files`` ({blob, name, type}, and ``from`` if somebody else sent them
first, with ``quoted`` if that is the author of the message it replies to); ``quoted`` is {from, text}; ``forwarded`` is
who sent the images first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rolecall.bus.blobs import Blob, Blobs, Files, forget_files
from rolecall.bus.envelope import UNREAD, Envelope, listed
from rolecall.bus.foreign_text import as_data, context_of
from rolecall.errors import expect

LOST = "(this file has expired)"
UNREADABLE = "(this file could not be read)"
EARLIER_BYTES = 4 * 1024 * 1024
HOURS = 24


@dataclass(frozen=True, slots=True)
class Document:
    """A document as text. ``earlier`` is true for one of an earlier message; ``author`` is who sent it first, if
    somebody else did."""

    name: str
    text: str
    earlier: bool = False
    author: str = ""

    @property
    def marked(self) -> str:
        """The document as a model may see it."""
        origin = {"forwarded_from": self.author} if self.author else {}
        sent = {"sent": "earlier"} if self.earlier else {}
        return as_data("document", self.text, name=self.name, **origin, **sent)


@dataclass(frozen=True)
class Attachments:
    """Fetches the blobs that payloads of one conversation refer to."""

    blobs: Blobs
    conversation: str

    async def images(self, payload: Mapping[str, Any]) -> tuple[bytes, ...]:
        """The images as whole encoded files; expired ones are left out."""
        found = [await self.blobs.get(self.conversation, str(one)) for one in listed(payload, "images")]
        return tuple(blob.data for blob in found if blob)

    async def documents(self, payload: Mapping[str, Any]) -> tuple[Document, ...]:
        """The text files; an expired one has a note instead of its text."""
        return tuple([
            Document(
                str(one.get("name", "")), blob.data.decode("utf-8", "replace") if blob else LOST,
                author="" if one.get("quoted") else str(one.get("from", "")),
            )
            for one, blob in await self._files(payload, "text/")
        ])  # fmt: skip

    async def question(self, text: str, payload: Mapping[str, Any], characters: int) -> str:
        """``text`` preceded by the documents of earlier messages, as many as have ``characters`` together, by what came
        with ``payload``, and by the message that it replies to. Later turns know its documents."""
        earlier = (await self._earlier(payload, characters))[::-1] if characters else ()
        await self._keep(payload)
        return in_context(text, (*earlier, *await self.documents(payload)), payload)

    async def _earlier(self, payload: Mapping[str, Any], characters: int) -> tuple[Document, ...]:
        """The documents of earlier messages that still exist, the last one first, as many as have ``characters``
        together."""
        own = {str(one.get("blob", "")) for one in listed(payload, "files") if isinstance(one, dict)}
        found = list[Document]()
        for file in await self._known.list():
            blob = None if file.id in own else await self.blobs.get(self.conversation, file.id)
            if blob is not None and (characters := characters - len(blob.data)) >= 0:
                found.append(Document(file.name, blob.data.decode("utf-8", "replace"), earlier=True))
        return tuple(found)

    async def _keep(self, payload: Mapping[str, Any]) -> None:
        """Have later turns know the documents of this one, for as long as they are stored; the oldest give way."""
        if not listed(payload, "files"):
            return
        known = {file.id for file in await self._known.list()}
        for one, blob in await self._files(payload, "text/"):
            if blob is None or blob.id in known or len(blob.data) > EARLIER_BYTES:
                continue
            files = await self._known.list()
            while files and sum(file.size for file in files) + len(blob.data) > EARLIER_BYTES:
                await self._known.delete(files.pop().id)
            await self._known.store(blob.data, str(one.get("name", "")), blob.media_type, "document", HOURS * 3600)

    async def names(self) -> list[str]:
        """The names of the documents that later turns know, the last one first."""
        return [file.name for file in await self._known.list()]

    async def forget(self) -> None:
        """Forget the documents of earlier messages."""
        await forget_files(self.blobs.bus, self.conversation)

    @property
    def _known(self) -> Files:
        return Files(self.blobs.bus, self.conversation, EARLIER_BYTES)

    async def sounds(self, payload: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], Blob], ...]:
        """The voice messages and other recordings, each with its entry in ``files``; expired ones are left out."""
        found = [*await self._files(payload, "audio/"), *await self._files(payload, "video/")]
        return tuple((one, blob) for one, blob in found if blob)

    async def _files(self, payload: Mapping[str, Any], kind: str) -> list[tuple[Mapping[str, Any], Blob | None]]:
        wanted = [one for one in listed(payload, "files") if isinstance(one, dict)]
        wanted = [one for one in wanted if str(one.get("type", "")).startswith(kind)]
        return [(one, await self.blobs.get(self.conversation, str(one.get("blob", "")))) for one in wanted]


def payload_of(envelope: Envelope) -> Mapping[str, Any]:
    """What came with the argument ``envelope``. Raises TypeError."""
    expect(isinstance(envelope, Envelope), "envelope", envelope, "the Envelope that is handled")
    return envelope.payload


def in_context(question: str, documents: tuple[Document, ...], payload: Mapping[str, Any]) -> str:
    """``question`` preceded by the documents that came with it and the message it replies to."""
    expect(isinstance(question, str), "the text of question()", question)
    parts = [one.marked for one in documents]
    parts += [_unread(one).marked for one in listed(payload, UNREAD)]
    parts += context_of(payload)
    return "\n\n".join([*parts, question] if question else parts)


def _unread(one: object) -> Document:
    """An entry of the list ``unread``."""
    known = one if isinstance(one, dict) else {"name": one}
    return Document(str(known.get("name", "")), UNREADABLE, author=str(known.get("from", "")))


def spoken(words: str, file: Mapping[str, Any]) -> str:
    """The words of the recording ``file``: those of the user, or marked as those of whom it was forwarded from, or of
    the author of the message that is replied to."""
    author, tag = str(file.get("from") or ""), "quoted" if file.get("quoted") else "forwarded"
    return as_data(tag, words, **{"from": author}) if author and words else words
