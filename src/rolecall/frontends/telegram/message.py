"""Where in Telegram a conversation is: a chat, or a topic of one."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from telegram import Audio, Document, Message, MessageEntity, Update, User, VideoNote, Voice

from rolecall.bus.commands import COMMANDS
from rolecall.frontends.telegram.markdown.entities import utf16_len

CONVERSATION = re.compile(r"([a-z0-9_-]+):(-?\d{1,19})(?::(\d{1,19}))?", re.ASCII)
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
LONG_UNITS = 4000
"""A text of so many UTF-16 units may be a piece of a longer one: clients cut at 4096, or at a nice place before."""
QUOTED_CHARS = 2000
NAME_CHARS = 40
COMMAND = re.compile(r"/(\w{1,64})(?:@(\w{1,64}))?(?:\s+|$)", re.ASCII)
PLAIN_COMMANDS = frozenset(command.name for command in COMMANDS)
"""Those that are for this bot in a group even without its name behind them."""


@dataclass(frozen=True, slots=True)
class Address:
    """A chat, and a topic of it when it has such. ``front`` is the name of the front end, one per bot."""

    chat: int
    topic: int | None = None
    front: str = "telegram"

    @property
    def conversation(self) -> str:
        """The conversation that is held here: ``telegram:42``, in a topic ``telegram:42:7``."""
        return f"{self.front}:{self.chat}" + (f":{self.topic}" if self.topic else "")

    @property
    def private(self) -> bool:
        """Whether it is a chat with one person alone."""
        return self.chat > 0

    @classmethod
    def of(cls, conversation: str) -> Address | None:
        """The address of a conversation, None for one that is not in Telegram by its form."""
        match = CONVERSATION.fullmatch(conversation)
        if match is None:
            return None
        return cls(int(match[2]), int(match[3]) if match[3] else None, match[1])


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


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a user, new or edited. ``text`` is what is asked, without the bot's name and, in groups, with the
    speaker's in front; ``command`` is the word of a message that is ``/word argument``, in lower case.

    ``version`` is 0 for a new message and rises with each edit; ``date`` is when it was sent, in seconds, and ``age``
    how long after that it was edited. ``title`` is the chat's name. ``album`` names what came in one go, ``long`` says
    that a client may have cut it from a longer text. ``quoted`` is what it replies to, ``(who, text)``, who being empty
    for the bot itself; ``reply_to`` is the id of that message.
    """

    address: Address
    user: int
    name: str
    language: str | None
    message_id: int
    text: str
    idempotency: str
    version: int = 0
    date: float = 0.0
    age: float = 0.0
    title: str = ""
    files: tuple[Attached, ...] = ()
    album: str = ""
    long: bool = False
    quoted: tuple[str, str] | None = None
    reply_to: int | None = None
    command: str = ""
    argument: str = ""

    @property
    def principal(self) -> str:
        """Whom limits and budgets count."""
        return f"telegram:user:{self.user}"


def incoming_of(
    update: Update,
    me: User,
    *,
    front: str = "telegram",
    keywords: Sequence[str] = (),
    commands: Collection[str] = PLAIN_COMMANDS,
    expected: bool = False,
) -> Incoming | None:
    """What ``update`` asks of the bot ``me``, None when it is not for it. In groups a message is for the bot when it
    names it, replies to it, is one of ``commands`` or has it behind the command, or has one of ``keywords`` (whole
    words, whatever their case); an ``expected`` one is in any case: it goes on with what is for the bot."""
    message = update.message or update.edited_message
    if message is None or not _from_a_person(message):
        return None
    raw = message.text or message.caption or (message.sticker.emoji if message.sticker else "") or ""
    text, named = _without_name(message, raw, me)
    command = COMMAND.match(text)
    if command and command[2] and command[2].lower() != (me.username or "").lower():
        return None
    if not (expected or message.chat.type == "private" or named or _is_reply_to(message, me)):
        for_us = command[2] or command[1].lower() in commands if command else _has_one(keywords, raw)
        if not for_us:
            return None
    files = (*attached_to(message), *_of_quoted(message, me))
    if not text and not files and not named:
        return None
    return _incoming(update, message, me, front, text, files)


def address_of(message: Message, front: str) -> Address:
    """Where ``message`` is. The thread of a reply in a group without topics is none."""
    topic = message.message_thread_id if message.is_topic_message else None
    return Address(message.chat.id, topic, front)


def _incoming(
    update: Update, message: Message, me: User, front: str, text: str, files: tuple[Attached, ...]
) -> Incoming:
    person = message.from_user
    assert person is not None  # a message of nobody is not from a person
    command, name = COMMAND.match(text), _plain(person.full_name)
    argument = text[command.end() :].strip() if command else ""
    if command:
        text = f"/{command[1]} {argument}".strip()
    elif text and message.chat.type != "private":
        text = f"{name}: {text}"
    replied = _replied(message)
    return Incoming(
        address=address_of(message, front),
        user=person.id,
        name=name,
        language=person.language_code,
        message_id=message.message_id,
        text=text,
        idempotency=f"tg:{me.id}:{message.chat.id}:{message.message_id}",
        version=update.update_id if update.edited_message else 0,
        date=message.date.timestamp(),
        age=(message.edit_date - message.date).total_seconds() if message.edit_date else 0.0,
        title=message.chat.title or name,
        files=files,
        album=message.media_group_id or "",
        long=utf16_len(message.text or "") >= LONG_UNITS,
        quoted=_quoted(message, me),
        reply_to=replied.message_id if replied else None,
        command=command[1].lower() if command else "",
        argument=argument,
    )


def _from_a_person(message: Message) -> bool:
    person = message.from_user
    return person is not None and not person.is_bot and not message.is_automatic_forward


def _without_name(message: Message, raw: str, me: User) -> tuple[str, bool]:
    """The text less the bot's name, and whether it was there."""
    units, spans = raw.encode("utf-16-le"), []
    for entity in message.entities or message.caption_entities:
        start, end = entity.offset * 2, (entity.offset + entity.length) * 2
        if _names(entity, units[start:end].decode("utf-16-le", "replace"), me):
            spans.append((start, end))
    for start, end in reversed(spans):
        units = units[:start] + units[end:]
    text = units.decode("utf-16-le", "replace")
    return (re.sub(r"^[\s,:]+|\s+$", "", text) if spans else text.strip()), bool(spans)


def _names(entity: MessageEntity, text: str, me: User) -> bool:
    if entity.type == MessageEntity.TEXT_MENTION:
        return entity.user is not None and entity.user.id == me.id
    return entity.type == MessageEntity.MENTION and text.lower() == f"@{me.username}".lower()


def _has_one(keywords: Sequence[str], text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in keywords)


def _replied(message: Message) -> Message | None:
    """The message it replies to. In a topic all that replies to nothing replies to the topic's beginning."""
    replied = message.reply_to_message
    return None if replied is None or replied.forum_topic_created else replied


def _is_reply_to(message: Message, me: User) -> bool:
    replied = _replied(message)
    return replied is not None and replied.from_user is not None and replied.from_user.id == me.id


def _quoted(message: Message, me: User) -> tuple[str, str] | None:
    replied = _replied(message)
    if replied is None:
        return None
    text = message.quote.text if message.quote else replied.text or replied.caption or ""
    if not text.strip():
        return None
    who = "" if _is_reply_to(message, me) else _plain(replied.from_user.full_name) if replied.from_user else "?"
    return who, text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]} …"


def _of_quoted(message: Message, me: User) -> tuple[Attached, ...]:
    """The files of what someone else sent, when a message about it asks the bot."""
    replied = _replied(message)
    if replied is None or _is_reply_to(message, me):
        return ()
    return tuple(one for one in attached_to(replied) if one.kind != "unknown")


def _plain(name: str) -> str:
    """A person's name, fit to stand before a colon."""
    shown = "".join(char if char.isprintable() and char != ":" else " " for char in name)
    return " ".join(shown.split())[:NAME_CHARS] or "?"
