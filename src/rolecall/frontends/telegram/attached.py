"""The files that came with a message, as Telegram describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from telegram import Audio, Document, Message, VideoNote, Voice

Kind = Literal["image", "voice", "document", "unknown"]
IMAGES = {"image/png", "image/jpeg", "image/gif", "image/webp"}
ENDINGS = """
    txt text md markdown rst adoc tex log csv tsv json jsonl yaml yml toml ini cfg conf env xml html htm css scss svg
    py pyi ipynb js mjs ts tsx jsx vue svelte java kt kts scala groovy clj c h cc cpp cxx hpp hh cs go rs swift m mm rb
    php pl pm lua r jl dart ex exs erl hrl hs ml fs sql sh bash zsh fish ps1 bat cmd vim asm s v sv vhd proto graphql
    tf hcl nix cmake gradle properties diff patch srt vtt po bib ics vcf eml dockerfile makefile gitignore
"""
TEXTS = frozenset(ENDINGS.split())
"""Endings (or whole names) of files that are text, whatever media type a client gives them."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A file that came with a message and is still at Telegram. ``size`` is in bytes, 0 when it is not known; one of
    the kind unknown is nothing that can be read here, and ``name`` says what."""

    kind: Kind
    file_id: str
    name: str
    media_type: str
    size: int = 0


def attached_to(message: Message) -> tuple[Attached, ...]:
    """What came with ``message``: one file or none; a sticker is none."""
    if message.photo:
        best = max(message.photo, key=lambda size: size.width * size.height)
        return (Attached("image", best.file_id, "photo.jpg", "image/jpeg", best.file_size or 0),)
    if sound := message.voice or message.audio or message.video_note:
        return (_sound(sound),)
    if message.sticker:
        return ()
    if message.animation:  # comes as a document, too
        return (Attached("unknown", "", "animation", ""),)
    if message.document:
        return (_document(message.document),)
    found = message.effective_attachment
    return (Attached("unknown", "", type(found).__name__.lower(), ""),) if found and not message.text else ()


def _sound(sound: Voice | Audio | VideoNote) -> Attached:
    media_type = getattr(sound, "mime_type", None) or ("video/mp4" if isinstance(sound, VideoNote) else "audio/ogg")
    name = getattr(sound, "file_name", None) or f"voice.{media_type.rpartition('/')[2]}"
    return Attached("voice", sound.file_id, name, media_type, sound.file_size or 0)


def _document(document: Document) -> Attached:
    name, media_type = document.file_name or "file", (document.mime_type or "").lower()
    ending = PurePosixPath(name.lower()).suffix.lstrip(".") or name.lower()
    kind: Kind = "unknown"
    if media_type in IMAGES:
        kind = "image"
    elif media_type == "application/pdf" or ending == "pdf":
        kind, media_type = "document", "application/pdf"
    elif media_type.startswith("text/") or ending in TEXTS:
        kind, media_type = "document", "text/plain"
    return Attached(kind, document.file_id, name, media_type, document.file_size or 0)
