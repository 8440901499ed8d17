"""A message for the bot: its chat or topic, its text and attachments, and whether it is addressed to the bot."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from telegram import (
    Audio,
    Chat,
    Contact,
    Document,
    ExternalReplyInfo,
    Message,
    MessageEntity,
    MessageOrigin,
    Update,
    User,
    VideoNote,
    Voice,
)

from rolecall.bus.blobs import IMAGE_TYPES
from rolecall.bus.commands import COMMANDS
from rolecall.bus.envelope import UNREAD
from rolecall.bus.foreign_text import ATTRIBUTE, as_data, defused
from rolecall.frontends.telegram.markdown.entities import utf16_len
from rolecall.frontends.telegram.markdown.source import markdown_source

CONVERSATION = re.compile(r"([a-z0-9_-]+):(-?\d{1,19})(?::(\d{1,19}))?", re.ASCII)
Kind = Literal["image", "voice", "document", "unknown"]
TEXT_EXTENSIONS = """
    txt text md markdown rst adoc tex log csv tsv json jsonl yaml yml toml ini cfg conf env xml html htm css scss svg
    py pyi ipynb js mjs ts tsx jsx vue svelte java kt kts scala groovy clj c h cc cpp cxx hpp hh cs go rs swift m mm rb
    php pl pm lua r jl dart ex exs erl hrl hs ml fs sql sh bash zsh fish ps1 bat cmd vim asm s v sv vhd proto graphql
    tf hcl nix cmake gradle properties diff patch srt vtt po bib ics vcf eml dockerfile makefile gitignore
"""
TEXTS = frozenset(TEXT_EXTENSIONS.split())
"""File extensions (or whole names) of text files; clients often send a wrong media type."""
OFFICE = frozenset({"docx", "xlsx", "pptx"})
UNSPECIFIC = frozenset({"", "application/octet-stream"})
"""Media types of files that are worth a look at their content."""
LONG_UNITS = 4000
"""Clients cut a text at 4096 UTF-16 units or at a line end before that, so a text this long may be continued."""
QUOTED_CHARS = 2000
NAME_CHARS = 40
COMMAND = re.compile(r"/(\w{1,64})(?:@(\w{1,64}))?(?:\s+|$)", re.ASCII)
PLAIN_COMMANDS = frozenset(command.name for command in COMMANDS)
"""Commands that the bot answers in a group without its name."""
PRINCIPAL = "telegram:user:"


def principal_of(user: int) -> str:
    """The user whom limits, budgets and reminders count towards."""
    return f"{PRINCIPAL}{user}"


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
    """A file of a message, not downloaded yet. ``size`` is in bytes, 0 if unknown; ``unique`` is the same in every
    update that has the file. The kind unknown cannot be read; what is not a file has no ``name``. ``quoted`` is true
    for a file of the message that is replied to, whose author is ``author``. Without a name, ``media_type`` is
    Telegram's word for the content."""

    kind: Kind
    file_id: str
    name: str
    media_type: str
    size: int = 0
    unique: str = ""
    quoted: bool = False
    author: str = ""


UNREADABLE = ("animation", "video", "story", "game", "invoice", "paid_media", "giveaway", "giveaway_winners")
"""What a message may contain that the bot cannot read. An animation is also present as a document."""


def attachments_of(message: Message | ExternalReplyInfo) -> tuple[Attachment, ...]:
    """The file of ``message``, or what else it contains that cannot be read; nothing for a text."""
    if message.photo:
        best = max(message.photo, key=lambda size: size.width * size.height)
        return (Attachment("image", best.file_id, "photo.jpg", "image/jpeg", best.file_size or 0, best.file_unique_id),)
    if sound := message.voice or message.audio or message.video_note:
        return (_sound(sound),)
    if kind := next((name for name in UNREADABLE if getattr(message, name, None)), ""):
        return (_unknown(kind),)
    if message.document:
        return (_document(message.document),)
    return (_unknown("sticker"),) if message.sticker and not message.sticker.emoji else ()


def content_of(message: Message | ExternalReplyInfo) -> str:
    """What ``message`` says without a text: the emoji of a sticker, a place, a contact, a poll or a checklist. These
    are words of others."""
    return defused(_content(message))


def _content(message: Message | ExternalReplyInfo) -> str:
    if message.sticker:
        return message.sticker.emoji or ""
    if message.venue:
        place = message.venue.location
        return f"📍 {message.venue.title}, {message.venue.address} ({place.latitude}, {place.longitude})"
    if message.location:
        return f"📍 {message.location.latitude}, {message.location.longitude}"
    if message.contact:
        return f"👤 {name_of(message.contact)}, {message.contact.phone_number}"
    if message.poll:
        return "\n- ".join([f"📊 {message.poll.question}", *(option.text for option in message.poll.options)])
    if message.checklist:
        return "\n- ".join([f"☑ {message.checklist.title}", *(task.text for task in message.checklist.tasks)])
    return f"{message.dice.emoji} {message.dice.value}" if message.dice else ""


def _unknown(kind: str) -> Attachment:
    return Attachment("unknown", "", "", kind)


def _sound(sound: Voice | Audio | VideoNote) -> Attachment:
    media_type = getattr(sound, "mime_type", None) or ("video/mp4" if isinstance(sound, VideoNote) else "audio/ogg")
    name = getattr(sound, "file_name", None) or f"voice.{media_type.rpartition('/')[2]}"
    return Attachment("voice", sound.file_id, name, media_type, sound.file_size or 0, sound.file_unique_id)


def _document(document: Document) -> Attachment:
    name, media_type = document.file_name or "file", (document.mime_type or "").lower()
    ending = PurePosixPath(name.lower()).suffix.lstrip(".") or name.lower()
    kind: Kind = "unknown"
    if media_type in IMAGE_TYPES:
        kind = "image"
    elif media_type == "application/pdf" or ending == "pdf":
        kind, media_type = "document", "application/pdf"
    elif media_type.startswith("text/") or ending in TEXTS:
        kind, media_type = "document", "text/plain"
    elif ending in OFFICE or media_type in UNSPECIFIC:
        kind = "document"
    return Attachment(kind, document.file_id, name, media_type, document.file_size or 0, document.file_unique_id)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks: a user, or a chat, whose id is negative: a channel, or the group itself for an anonymous admin."""

    id: int
    name: str
    language: str | None = None


def sender_of(message: Message) -> Sender | None:
    """The sender of ``message``; None for bots and for posts that a linked channel forwards by itself."""
    person, chat = message.from_user, message.sender_chat
    if message.is_automatic_forward:
        return None
    if chat is not None and (person is None or person.is_bot):
        return Sender(chat.id, _plain(message.author_signature) if message.author_signature else name_of(chat))
    if person is None or person.is_bot:
        return None
    return Sender(person.id, name_of(person), person.language_code)


def name_of(one: User | Chat | Contact) -> str:
    """The name of a user, a chat or a contact, without colons and control characters; ``?`` if it is empty."""
    title = getattr(one, "title", None)
    return _plain(str(title) if title else " ".join(filter(None, (one.first_name, one.last_name))))


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a user, new or edited.

    ``text`` is Markdown, lacks the bot's name and, in groups, starts with the sender's name; ``command`` is the word of
    a message that reads ``/word argument``, in lower case, and ``argument`` has no marks. ``version`` is 0 for a new
    message and rises with each edit; ``date`` is when it was sent and ``age`` how much later it was edited, both in
    seconds. ``title`` is the chat's name. ``album`` is the id of the album it belongs to; ``long`` is true if the text
    may be a piece of a longer one. ``quoted`` is the author (empty for the bot) and text of the message it replies to;
    ``reply_to`` is that id. ``forwarded`` says that somebody else wrote it, ``origin`` who; its text is then marked as
    theirs. ``anonymous`` is true for an admin of the group who speaks as the group. A message without text and files
    only names the bot.
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
    forwarded: bool = False
    origin: str = ""
    anonymous: bool = False

    @property
    def principal(self) -> str:
        """The user that limits and budgets apply to."""
        return principal_of(self.user)

    @property
    def edition(self) -> str:
        """The idempotency key of the message as it stands: an edit has one of its own."""
        return f"{self.idempotency}:{self.version}" if self.version else self.idempotency

    @property
    def fingerprint(self) -> str:
        """A digest of what the user wrote and attached; a link preview or a reaction does not change it."""
        said = (self.text.removeprefix(f"{self.name}: "), [one.unique for one in self.files])
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def payload(self, files: Mapping[str, Any]) -> dict[str, Any]:
        """What the message brings to its turn, with its ``files`` as ``Media.fetch`` stored them."""
        payload = {**files, "text": self.text}
        if not self.address.private and not self.command:
            payload["sender"] = {"name": self.name}
        if self.quoted:
            payload["quoted"] = {"from": self.quoted[0], "text": self.quoted[1]}
        if self.origin and "images" in files and not self.text:  # else the text says so
            payload["forwarded"] = self.origin
        if self.origin and "files" in files:
            payload["files"] = [{"from": self.origin, **one} for one in files["files"]]
        if self.origin and UNREAD in files:
            payload[UNREAD] = [{"name": name, "from": self.origin} for name in files[UNREAD]]
        return payload


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

    An edited location is one that moves: it was received when it was sent.

    A message in a group is addressed to the bot if it mentions it, replies to it, is one of ``commands`` or a command
    with the bot's name, or contains one of ``keywords`` as a whole word, ignoring case. An ``expected`` message
    continues one that was addressed to the bot and is accepted in any case.
    """
    message = update.message or update.edited_message
    sender = None if message is None else sender_of(message)
    if message is None or sender is None or (update.edited_message and message.location):
        return None
    raw = message.text or message.caption or content_of(message)
    named = _names(message, raw, me)
    text, plain = _without(named, raw, _entities(message)), _without(named, raw, named)
    command = None if message.forward_origin else COMMAND.match(plain)
    if command and command[2] and command[2].lower() != (me.username or "").lower():
        return None
    private = message.chat.type == "private"
    if not (expected or private or named or (_is_reply_to(message, me) and not _names_other_bot(message, raw))):
        for_us = command[2] or command[1].lower() in commands if command else _has_one(keywords, raw)
        if not for_us:
            return None
    files = (*attachments_of(message), *_of_quoted(message, me))
    if not text and not files:
        if not named:
            return _unreadable(update, message, sender, me, front) if private else None
        text = raw.strip() if _quoted(message, me) else ""  # just its name asks about the message it replies to
    return _incoming(update, message, sender, me, front, text, files, plain)


def is_long(message: Message) -> bool:
    """Whether the text of ``message`` may be a piece of a longer one."""
    return utf16_len(message.text or "") >= LONG_UNITS


def idempotency_of(message: Message, me: User) -> str:
    """The idempotency key of ``message``, which its edits have too."""
    return f"tg:{me.id}:{message.chat.id}:{message.message_id}"


def address_of(message: Message, front: str) -> Address:
    """The address of ``message``. In a group without topics, a thread of replies is not a topic."""
    topic = message.message_thread_id if message.is_topic_message else None
    return Address(message.chat.id, topic, front)


def _incoming(
    update: Update, message: Message, sender: Sender, me: User, front: str, text: str, files: tuple[Attachment, ...],
    plain: str = "",
) -> Incoming:  # fmt: skip
    origin = message.forward_origin
    command = None if origin else COMMAND.match(plain)
    replied = _replied(message)
    return Incoming(
        address=address_of(message, front),
        user=sender.id,
        name=sender.name,
        language=sender.language,
        message_id=message.message_id,
        text=_called(command, text) if command else _spoken(message, sender, text),
        idempotency=idempotency_of(message, me),
        version=update.update_id if update.edited_message else 0,
        date=message.date.timestamp(),
        age=(message.edit_date - message.date).total_seconds() if message.edit_date else 0.0,
        title=message.chat.title or sender.name,
        files=files,
        album=message.media_group_id or "",
        long=is_long(message),
        quoted=_quoted(message, me),
        reply_to=replied.message_id if replied else None,
        command=command[1].lower() if command else "",
        argument=_argument(command) if command else "",
        forwarded=origin is not None,
        origin=_origin(origin) if origin else "",
        anonymous=sender.id == message.chat.id,
    )


def _called(command: re.Match[str], text: str) -> str:
    """A command without the bot's name. Commands of the bus take words; roles get Markdown, as for a question."""
    written = None if command[1].lower() in PLAIN_COMMANDS else COMMAND.match(text)
    return f"/{command[1]} {_argument(written or command)}".strip()


def _argument(command: re.Match[str]) -> str:
    return command.string[command.end() :].strip()


def _spoken(message: Message, sender: Sender, text: str) -> str:
    """The text as the model sees it: marked if it was forwarded; in a group, after the name of who sent it."""
    if text and message.forward_origin:
        text = as_data("forwarded", text, **{"from": _origin(message.forward_origin)})
    return f"{sender.name}: {text}" if text and message.chat.type != "private" else text


def _unreadable(update: Update, message: Message, sender: Sender, me: User, front: str) -> Incoming | None:
    """A private message with content that the library does not know yet; None for one that says nothing, such as that
    the user changed a setting."""
    return _incoming(update, message, sender, me, front, "", (_unknown("message"),)) if message.api_kwargs else None


def _origin(origin: MessageOrigin) -> str:
    """Who wrote a forwarded message."""
    if name := getattr(origin, "sender_user_name", None):
        return _plain(name)
    chat = getattr(origin, "sender_user", None) or getattr(origin, "sender_chat", None) or getattr(origin, "chat", None)
    return "?" if chat is None else name_of(chat)


def _without(names: Sequence[MessageEntity], raw: str, entities: Sequence[MessageEntity]) -> str:
    """The text as Markdown, with the marks of ``entities``, without the mentions of the bot ``names``."""
    text = markdown_source(raw, entities, names)
    return re.sub(r"^[\s,:]+|\s+$", "", text) if names else text.strip()


def _entities(message: Message) -> Sequence[MessageEntity]:
    return message.entities or message.caption_entities


def _names(message: Message, raw: str, me: User) -> list[MessageEntity]:
    """The mentions of the bot."""
    units, found = raw.encode("utf-16-le", "replace"), []
    for entity in _entities(message):
        name = units[entity.offset * 2 : (entity.offset + entity.length) * 2].decode("utf-16-le", "replace")
        if entity.type == MessageEntity.TEXT_MENTION:
            named = entity.user is not None and entity.user.id == me.id
        else:
            named = entity.type == MessageEntity.MENTION and name.lower() == f"@{me.username}".lower()
        found += [entity] if named else []
    return found


def _has_one(keywords: Sequence[str], text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in keywords)


def _replied(message: Message) -> Message | None:
    """The message that ``message`` replies to; not a topic's first one, to which all others in the topic reply."""
    replied = message.reply_to_message
    return None if replied is None or replied.forum_topic_created else replied


def _names_other_bot(message: Message, raw: str) -> bool:
    units = raw.encode("utf-16-le", "replace")
    spans = ((one.offset * 2, (one.offset + one.length) * 2) for one in _entities(message) if one.type == one.MENTION)
    return any(units[start:end].decode("utf-16-le", "replace").lower().endswith("bot") for start, end in spans)


def _is_reply_to(message: Message, me: User) -> bool:
    """Whether ``message`` replies to the bot, in its own topic or in another one of the chat."""
    replied, other = _replied(message), message.external_reply
    author = replied.from_user if replied else None
    if other is not None and other.chat is not None and other.chat.id == message.chat.id:
        author = getattr(other.origin, "sender_user", None)
    return author is not None and author.id == me.id


def _quoted(message: Message, me: User) -> tuple[str, str] | None:
    """The author and text of the message that ``message`` replies to, which may be in another chat."""
    replied, other = _replied(message), message.external_reply
    text = markdown_source(message.quote.text, message.quote.entities or ()) if message.quote else ""
    if replied is not None:
        text = text or markdown_source(replied.text or replied.caption or "", _entities(replied)) or content_of(replied)
        who = _author_of(replied)
    elif other is not None:
        text, who = text or content_of(other), _origin(other.origin)
    else:
        return None
    if not text.strip():
        return None
    return "" if _is_reply_to(message, me) else who, text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]} …"


def _author_of(message: Message) -> str:
    if sender := sender_of(message):
        return sender.name
    author = message.sender_chat or message.from_user  # a channel's post in its group is from the user "Telegram"
    return name_of(author) if author else "?"


def _of_quoted(message: Message, me: User) -> tuple[Attachment, ...]:
    """The files of another user's message that ``message`` replies to, also of one in another chat."""
    replied, other = _replied(message), message.external_reply
    if (found := replied or other) is None or _is_reply_to(message, me):
        return ()
    author = _author_of(replied) if replied else _origin(other.origin) if other else ""
    return tuple(replace(one, quoted=True, author=author) for one in attachments_of(found))


def _plain(name: str) -> str:
    """A name without colons, angle brackets and control characters, for ``name: text``."""
    shown = "".join(char if char.isprintable() and char != ":" else " " for char in name.translate(ATTRIBUTE))
    return " ".join(shown.split())[:NAME_CHARS] or "?"
