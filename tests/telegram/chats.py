"""Who is on the local Telegram, and what they see: users, chats and messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.telegram.entities import Entity, accepted, found
from tests.telegram.updates import Updates

BOT: dict[str, Any] = {"id": 4242, "is_bot": True, "first_name": "Rolecall", "username": "rolecall_bot"}


@dataclass
class Look:
    """How a message looked from ``at`` on (monotonic seconds)."""

    at: float
    text: str
    entities: tuple[Entity, ...] = ()
    markup: dict[str, Any] | None = None


@dataclass
class Message:
    """A message in a chat; ``looks`` are all its states, the present one last."""

    id: int
    chat: Chat
    sender: dict[str, Any]
    looks: list[Look]
    thread: int | None = None
    reply_to: Message | None = None
    media: dict[str, Any] = field(default_factory=dict)
    date: int = field(default_factory=lambda: int(time.time()))
    deleted: bool = False
    old: bool = False
    """Set it to make the message too old to be edited or deleted."""
    reactions: dict[int, list[str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.looks[-1].text

    @property
    def entities(self) -> tuple[Entity, ...]:
        return self.looks[-1].entities

    @property
    def markup(self) -> dict[str, Any] | None:
        return self.looks[-1].markup

    @property
    def edits(self) -> list[Look]:
        """Its states after the first."""
        return self.looks[1:]

    @property
    def mine(self) -> bool:
        """Whether the bot wrote it."""
        return bool(self.sender["is_bot"])

    @property
    def buttons(self) -> list[dict[str, Any]]:
        return [button for row in (self.markup or {}).get("inline_keyboard", []) for button in row]

    def entity(self, kind: str) -> list[str]:
        """The texts that its entities of this kind mark."""
        raw = self.text.encode("utf-16-le")
        spans = [(one["offset"] * 2, one["length"] * 2) for one in self.entities if one["type"] == kind]
        return [raw[first : first + length].decode("utf-16-le") for first, length in spans]

    def look(self, text: str, entities: tuple[Entity, ...], markup: dict[str, Any] | None) -> None:
        self.looks.append(Look(time.monotonic(), text, entities, markup))

    def as_json(self, *, whole: bool = True) -> dict[str, Any]:
        caption = "caption" if self.media else "text"
        marks = "caption_entities" if self.media else "entities"
        out: dict[str, Any] = {"message_id": self.id, "date": self.date, "from": self.sender}
        out |= {"chat": self.chat.as_json()} | self.media | ({caption: self.text} if self.text else {})
        out |= {marks: list(self.entities)} if self.entities else {}
        out |= {"reply_markup": self.markup} if self.markup else {}
        out |= {"edit_date": int(time.time())} if self.edits else {}
        out |= {"message_thread_id": self.thread, "is_topic_message": True} if self.thread else {}
        if whole and self.reply_to and not self.reply_to.deleted:
            out["reply_to_message"] = self.reply_to.as_json(whole=False)
        return out


@dataclass
class Chat:
    """A private chat (its id is the user's) or a group; a forum has topics."""

    id: int
    title: str
    forum: bool = False
    kicked: bool = False
    """Set it once the bot is no longer in the group."""
    texts_only: bool = False
    """Set it when members may not send photos and documents."""
    admins: set[int] = field(default_factory=set)
    """The users who administer the group."""
    moved_to: int = 0
    """The supergroup that the group has become."""
    topics: dict[int, str] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Where the ids of its messages come from: private chats and small groups share it, a large group has its own."""
    every: dict[int, Message] = field(default_factory=dict)
    actions: list[tuple[float, str, int | None]] = field(default_factory=list)
    """What the bot was seen doing: monotonic seconds, the action, the topic."""
    drafts: list[tuple[float, int, str]] = field(default_factory=list)
    """Streamed drafts: monotonic seconds, the draft's id, its text."""

    @property
    def private(self) -> bool:
        return self.id > 0

    @property
    def messages(self) -> list[Message]:
        """What is to be seen in the chat."""
        return [message for message in self.every.values() if not message.deleted]

    @property
    def answers(self) -> list[Message]:
        """What the bot wrote and is to be seen."""
        return [message for message in self.messages if message.mine]

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    def add(self, sender: dict[str, Any], text: str, entities: tuple[Entity, ...] = (), **rest: Any) -> Message:
        look = Look(time.monotonic(), text, entities, rest.pop("markup", None))
        message = Message(next(self.ids), self, sender, [look], **rest)
        self.every[message.id] = message
        return message

    def as_json(self) -> dict[str, Any]:
        if self.private:
            return {"id": self.id, "type": "private", "first_name": self.title}
        return {"id": self.id, "type": "supergroup", "title": self.title, **({"is_forum": True} if self.forum else {})}


@dataclass
class User:
    """Someone with a Telegram client; without ``chat`` it all happens in the private chat with the bot."""

    world: World
    id: int
    name: str
    language_code: str = "en"
    username: str = ""
    blocked: bool = False
    deactivated: bool = False

    def as_json(self) -> dict[str, Any]:
        named = {"username": self.username} if self.username else {}
        return {"id": self.id, "is_bot": False, "first_name": self.name, "language_code": self.language_code, **named}

    def write(
        self, text: str, *, chat: int | None = None, topic: int | None = None, reply_to: Message | None = None
    ) -> Message:
        """Send ``text`` as it would arrive: trimmed, with its commands and mentions marked."""
        clean, _ = accepted(text)
        return self._send(clean, chat, topic, reply_to, {})

    def edit(self, message: Message, text: str) -> None:
        """Change what was written."""
        clean, _ = accepted(text)
        message.look(clean, found(clean), message.markup)
        self.world.updates.push("edited_message", message.as_json())

    def delete(self, message: Message) -> None:
        """Remove a message for all; Telegram does not tell the bot."""
        message.deleted = True

    def press(self, message: Message, data: str) -> str:
        """Press the button with this data; returns the id of the query that the bot has to answer."""
        assert data in [one.get("callback_data") for one in message.buttons], f"no button {data!r}: {message.buttons}"
        query = str(10_000_000 + len(self.world.queries))
        self.world.queries[query] = None
        body = {"id": query, "from": self.as_json(), "message": message.as_json(), "chat_instance": "1", "data": data}
        self.world.updates.push("callback_query", body)
        return query

    def react(self, message: Message, *emoji: str) -> None:
        """Set one's reactions to a message."""
        before, message.reactions[self.id] = message.reactions.get(self.id, []), list(emoji)
        body = {"chat": message.chat.as_json(), "message_id": message.id, "user": self.as_json(), "date": message.date}
        old, new = ([{"type": "emoji", "emoji": one} for one in group] for group in (before, emoji))
        self.world.updates.push("message_reaction", {**body, "old_reaction": old, "new_reaction": new})

    def send_photo(self, content: bytes, *, caption: str = "", media_group_id: str = "", **where: Any) -> Message:
        """A photo; those with one ``media_group_id`` are an album."""
        sizes = [{**self.world.keep(content, f"photo{n}.jpg"), "width": n, "height": n} for n in (90, 800)]
        return self._media({"photo": sizes}, caption, media_group_id, where)

    def send_document(
        self, content: bytes, *, name: str = "file.txt", mime_type: str = "text/plain", caption: str = "",
        media_group_id: str = "", **where: Any,
    ) -> Message:  # fmt: skip
        """A file of any kind."""
        kept = {**self.world.keep(content, name), "file_name": name, "mime_type": mime_type}
        return self._media({"document": kept}, caption, media_group_id, where)

    def send_video(self, video: dict[str, Any], *, media_group_id: str = "", **where: Any) -> Message:
        """A video, which may be a part of an album."""
        return self._media({"video": video}, "", media_group_id, where)

    def send_voice(self, content: bytes, *, duration: int = 1, caption: str = "", **where: Any) -> Message:
        """A spoken message."""
        kept = {**self.world.keep(content, "voice.oga"), "duration": duration, "mime_type": "audio/ogg"}
        return self._media({"voice": kept}, caption, "", where)

    def forward(self, origin: dict[str, Any], text: str = "", *, chat: int | None = None, **media: Any) -> Message:
        """Forward what ``origin`` wrote, right after what was written before."""
        forward = {"forward_origin": {"date": 1_700_000_000, **origin}}
        return self._send(text, chat, None, None, {**media, **forward})

    def block(self) -> None:
        """Stop the bot, as the user's client does."""
        self.blocked = True
        self._membership("member", "kicked")

    def unblock(self) -> None:
        """Let the bot in again."""
        self.blocked = False
        self._membership("kicked", "member")

    def _media(self, media: dict[str, Any], caption: str, group: str, where: dict[str, Any]) -> Message:
        grouped = {"media_group_id": group} if group else {}
        return self._send(caption, where.get("chat"), where.get("topic"), where.get("reply_to"), media | grouped)

    def _send(
        self, text: str, chat: int | None, topic: int | None, reply_to: Message | None, media: dict[str, Any]
    ) -> Message:
        place = self.world.chats[chat] if chat is not None else self.world.private(self)
        message = place.add(self.as_json(), text, found(text), thread=topic, reply_to=reply_to, media=media)
        self.world.updates.push("message", message.as_json())
        return message

    def _membership(self, before: str, after: str) -> None:
        old, new = ({"user": BOT, "status": status, "until_date": 0} for status in (before, after))
        body = {"chat": self.world.private(self).as_json(), "from": self.as_json(), "date": int(time.time())}
        self.world.updates.push("my_chat_member", {**body, "old_chat_member": old, "new_chat_member": new})


@dataclass
class World:
    """All that is on the local Telegram."""

    updates: Updates = field(default_factory=Updates)
    users: dict[int, User] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    chats: dict[int, Chat] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    queries: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Pressed buttons by query id, with the bot's answer; None until it has answered."""
    commands: dict[tuple[str, str], list[dict[str, str]]] = field(default_factory=dict)
    """The bot's commands by scope and language."""

    def private(self, user: User) -> Chat:
        """The user's chat with the bot, opened by its first message."""
        return self.chats.setdefault(user.id, Chat(user.id, user.name, ids=self.ids))

    def keep(self, content: bytes, name: str) -> dict[str, Any]:
        """Store a file; returns its JSON."""
        key = f"file{len(self.files)}"
        self.files[key] = (name, content)
        return {"file_id": key, "file_unique_id": f"u{key}", "file_size": len(content)}
