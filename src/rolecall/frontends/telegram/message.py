"""A message for the bot: its chat or topic, its text and attachments, and whether it is addressed to the bot."""

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
TEXT_EXTENSIONS = """
    txt text md markdown rst adoc tex log csv tsv json jsonl yaml yml toml ini cfg conf env xml html htm css scss svg
    py pyi ipynb js mjs ts tsx jsx vue svelte java kt kts scala groovy clj c h cc cpp cxx hpp hh cs go rs swift m mm rb
    php pl pm lua r jl dart ex exs erl hrl hs ml fs sql sh bash zsh fish ps1 bat cmd vim asm s v sv vhd proto graphql
    tf hcl nix cmake gradle properties diff patch srt vtt po bib ics vcf eml dockerfile makefile gitignore
"""
TEXTS = frozenset(TEXT_EXTENSIONS.split())
"""File extensions (or whole names) of text files; clients often send a wrong media type."""
LONG_UNITS = 4000
"""Clients cut a text at 4096 UTF-16 units or at a line end before that, so a text this long may be continued."""
QUOTED_CHARS = 2000
NAME_CHARS = 40
COMMAND = re.compile(r"/(\w{1,64})(?:@(\w{1,64}))?(?:\s+|$)", re.ASCII)
PLAIN_COMMANDS = frozenset(command.name for command in COMMANDS)
"""Commands that the bot answers in a group without its name."""


@dataclass(frozen=True, slots=True)
class Address:
    """A chat, and a topic of it if it has topics. ``front`` is the name of the front end; each bot has its own."""

    chat: int
    topic: int | None = None
    front: str = "telegram"

    @property
    def conversation(self) -> str:
        """The name of the conversation: ``telegram:42``, in a topic ``telegram:42:7``."""
        return f"{self.front}:{self.chat}" + (f":{self.topic}" if self.topic else "")

    @property
    def private(self) -> bool:
        """Whether this is a private chat."""
        return self.chat > 0

    @classmethod
    def of(cls, conversation: str) -> Address | None:
        """The address of ``conversation``; None if the name is not one of a Telegram conversation."""
        match = CONVERSATION.fullmatch(conversation)
        if match is None:
            return None
        return cls(int(match[2]), int(match[3]) if match[3] else None, match[1])


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of a message, not downloaded yet. ``size`` is in bytes, 0 if unknown. A file of the kind unknown cannot be
    read; ``name`` then says what it is."""

    kind: Kind
    file_id: str
    name: str
    media_type: str
    size: int = 0


def attachments_of(message: Message) -> tuple[Attachment, ...]:
    """The file of ``message``, if it has one. A sticker is not a file."""
    if message.photo:
        best = max(message.photo, key=lambda size: size.width * size.height)
        return (Attachment("image", best.file_id, "photo.jpg", "image/jpeg", best.file_size or 0),)
    if sound := message.voice or message.audio or message.video_note:
        return (_sound(sound),)
    if message.sticker:
        return ()
    if message.animation:  # also present as a document
        return (Attachment("unknown", "", "animation", ""),)
    if message.document:
        return (_document(message.document),)
    found = message.effective_attachment
    return (Attachment("unknown", "", type(found).__name__.lower(), ""),) if found and not message.text else ()


def _sound(sound: Voice | Audio | VideoNote) -> Attachment:
    media_type = getattr(sound, "mime_type", None) or ("video/mp4" if isinstance(sound, VideoNote) else "audio/ogg")
    name = getattr(sound, "file_name", None) or f"voice.{media_type.rpartition('/')[2]}"
    return Attachment("voice", sound.file_id, name, media_type, sound.file_size or 0)


def _document(document: Document) -> Attachment:
    name, media_type = document.file_name or "file", (document.mime_type or "").lower()
    ending = PurePosixPath(name.lower()).suffix.lstrip(".") or name.lower()
    kind: Kind = "unknown"
    if media_type in IMAGES:
        kind = "image"
    elif media_type == "application/pdf" or ending == "pdf":
        kind, media_type = "document", "application/pdf"
    elif media_type.startswith("text/") or ending in TEXTS:
        kind, media_type = "document", "text/plain"
    return Attachment(kind, document.file_id, name, media_type, document.file_size or 0)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a user, new or edited.

    ``text`` lacks the bot's name and, in groups, starts with the sender's name; ``command`` is the word of a message
    that reads ``/word argument``, in lower case. ``version`` is 0 for a new message and rises with each edit; ``date``
    is when it was sent and ``age`` how much later it was edited, both in seconds. ``title`` is the chat's name.
    ``album`` is the id of the album it belongs to; ``long`` is true if the text may be a piece of a longer one.
    ``quoted`` is the author (empty for the bot) and text of the message it replies to; ``reply_to`` is that id.
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
    files: tuple[Attachment, ...] = ()
    album: str = ""
    long: bool = False
    quoted: tuple[str, str] | None = None
    reply_to: int | None = None
    command: str = ""
    argument: str = ""

    @property
    def principal(self) -> str:
        """The user that limits and budgets apply to."""
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
    """The message in ``update``; None if it is not addressed to the bot ``me``.

    A message in a group is addressed to the bot if it mentions it, replies to it, is one of ``commands`` or a command
    with the bot's name, or contains one of ``keywords`` as a whole word, ignoring case. An ``expected`` message
    continues one that was addressed to the bot and is accepted in any case.
    """
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
    files = (*attachments_of(message), *_of_quoted(message, me))
    if not text and not files and not named:
        return None
    return _incoming(update, message, me, front, text, files)


def address_of(message: Message, front: str) -> Address:
    """The address of ``message``. In a group without topics, a thread of replies is not a topic."""
    topic = message.message_thread_id if message.is_topic_message else None
    return Address(message.chat.id, topic, front)


def _incoming(
    update: Update, message: Message, me: User, front: str, text: str, files: tuple[Attachment, ...]
) -> Incoming:
    person = message.from_user
    assert person is not None  # checked by _from_a_person
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
    """The text without mentions of the bot, and whether there were any."""
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
    """The message that ``message`` replies to; not a topic's first one, to which all others in the topic reply."""
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


def _of_quoted(message: Message, me: User) -> tuple[Attachment, ...]:
    """The files of another user's message that ``message`` replies to."""
    replied = _replied(message)
    if replied is None or _is_reply_to(message, me):
        return ()
    return tuple(one for one in attachments_of(replied) if one.kind != "unknown")


def _plain(name: str) -> str:
    """A name without colons and control characters, for ``name: text``."""
    shown = "".join(char if char.isprintable() and char != ":" else " " for char in name)
    return " ".join(shown.split())[:NAME_CHARS] or "?"
