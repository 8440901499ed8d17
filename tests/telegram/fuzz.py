"""Updates of the shape that the Bot API documents, with values that nobody expects. All of them come from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
BOT_USER: Json = {"id": 4242, "is_bot": True, "first_name": "Rolecall", "username": "rolecall_bot"}
ANONYMOUS: Json = {"id": 1087968824, "is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}
CHANNEL_BOT: Json = {"id": 136817688, "is_bot": True, "first_name": "Channel", "username": "Channel_Bot"}
TEXTS = (
    "", " ", "hello", "@rolecall_bot", "@rolecall_bot what is that?", "/stop", "/help", "/model", "/queue", "/lang de",
    "/start abc", "/nothing_like_it", "/calc@rolecall_bot 1+1", "/stop@other_bot", "/", "//", "/@", "a" * 4096,
    "\u200b", "\u202e\u0000", "\ud800", "😀" * 100, "</quoted>", "*" * 50, "ask @other_bot", "\n\n", "नमस्ते",
)  # fmt: skip
NAMES = ("", "Ann", " ", ":", "A" * 64, "\u200f", "\ud83d", "'></quoted>", "名前")
KINDS = ("private", "group", "supergroup", "channel")


class Fuzz:
    """A source of updates. ``users`` and ``groups`` are those that the bot serves."""

    def __init__(self, seed: int, users: tuple[int, ...] = (7,), groups: tuple[int, ...] = (-100,)) -> None:
        self.random = random.Random(seed)
        self.users, self.groups = users, groups
        self._number = 900_000_000
        self._message = 1000

    def update(self) -> Json:
        """The next update."""
        self._number += 1
        kinds: dict[str, Callable[[], Json]] = {
            "message": self.message, "edited_message": self.edited, "callback_query": self.press,
            "my_chat_member": self.membership, "channel_post": self.message, "message_reaction": self.reaction,
            "something_of_tomorrow": lambda: {"id": "x"},
        }  # fmt: skip
        kind = self.random.choices(list(kinds), weights=(12, 4, 3, 1, 1, 1, 1))[0]
        return {"update_id": self._number, kind: kinds[kind]()}

    def message(self, depth: int = 2) -> Json:
        """A message, with the one it replies to."""
        self._message += 1
        chat = self.chat()
        message = {"message_id": self._message, "date": 1_700_000_000 + self.random.randint(0, 9), "chat": chat}
        message |= self.sender(chat) | self.content()
        if self.maybe(0.1):
            message["forward_origin"] = self.origin()
        if self.maybe(0.1):
            message |= {"message_thread_id": self.random.choice((1, 5)), "is_topic_message": self.maybe()}
        if depth and self.maybe(0.25):
            message["reply_to_message"] = self.message(depth - 1)
        if self.maybe(0.1):
            message["quote"] = {"text": self.text(), "position": 0}
        if self.maybe(0.05):
            message["external_reply"] = {"origin": self.origin(), **self.media()}
        if self.maybe(0.05):
            message["media_group_id"] = str(self.random.randint(1, 5))
        if self.maybe(0.03):
            message["field_of_tomorrow"] = {"deep": [[[]]]}
        return message

    def edited(self) -> Json:
        """An edited message, often one that was sent before."""
        message = self.message()
        self._message -= 1
        return {**message, "message_id": self._message - self.random.randint(0, 3), "edit_date": message["date"] + 5}

    def press(self) -> Json:
        """A pressed button, with data of ours, of others, or none."""
        data = (
            "stop:1",
            "again:1",
            "up:1",
            "edit:2",
            "model:x",
            "queue:9",
            "stop:",
            ":",
            "",
            "x" * 64,
            "down:" + "9" * 18,
        )
        pressed: Json = {"id": str(self._number), "from": self.person(), "chat_instance": "1"}
        if self.maybe(0.9):
            pressed["message"] = (
                self.message() if self.maybe(0.8) else {"chat": self.chat(), "message_id": 1, "date": 0}
            )
        return pressed | ({"data": self.random.choice(data)} if self.maybe(0.9) else {"game_short_name": "x"})

    def membership(self) -> Json:
        """The bot's own membership changes."""
        old, new = (self.random.choice(("member", "left", "kicked", "administrator")) for _ in range(2))
        body = {"chat": self.chat(), "from": self.person(), "date": 1_700_000_000}
        return body | {"old_chat_member": _member(old), "new_chat_member": _member(new)}

    def reaction(self) -> Json:
        """A reaction, which the bot has not asked for."""
        body = {"chat": self.chat(), "message_id": 1, "date": 1_700_000_000, "user": self.person()}
        return body | {"old_reaction": [], "new_reaction": [{"type": "emoji", "emoji": "👍"}]}

    def chat(self) -> Json:
        """A chat, often one that is served."""
        kind = self.random.choices(KINDS, weights=(6, 2, 3, 1))[0]
        if kind == "private":
            return {"id": self.random.choice((*self.users, 99)), "type": kind, "first_name": self.name()}
        known = self.random.choice((*self.groups, -1001234567890))
        return {"id": known, "type": kind, "title": self.name()} | ({"is_forum": True} if self.maybe(0.2) else {})

    def person(self) -> Json:
        """A user, with names that may be empty."""
        person: Json = {"id": self.random.choice((*self.users, 99, 2**52)), "is_bot": self.maybe(0.05)}
        person |= {"first_name": self.name()}
        person |= {"last_name": self.name()} if self.maybe() else {}
        return person | ({"language_code": self.random.choice(("de", "", "zh-hans", "xx"))} if self.maybe(0.8) else {})

    def sender(self, chat: Json) -> Json:
        """Who speaks: a person, an anonymous admin, a channel, or nobody."""
        who = self.random.choices(("person", "admin", "channel", "post", "nobody"), weights=(12, 1, 1, 1, 1))[0]
        channel = {"id": -1009, "type": "channel", "title": self.name()}
        senders: dict[str, Json] = {
            "person": {"from": self.person()}, "admin": {"from": ANONYMOUS, "sender_chat": chat},
            "channel": {"from": CHANNEL_BOT, "sender_chat": channel}, "nobody": {},
            "post": {"from": CHANNEL_BOT, "sender_chat": channel, "is_automatic_forward": True},
        }  # fmt: skip
        return senders[who]

    def content(self) -> Json:
        """A text with entities, media with a caption, or what a service message says."""
        what = self.random.choices(("text", "media", "service"), weights=(8, 5, 2))[0]
        if what == "service":
            return self.service()
        text = self.text()
        name = "text" if what == "text" else "caption"
        marks = "entities" if what == "text" else "caption_entities"
        found: Json = {name: text} if text or self.maybe() else {}
        found |= {marks: self.entities(text)} if self.maybe() else {}
        return found if what == "text" else self.media() | found

    def entities(self, text: str) -> list[Json]:
        """Entities, some of which lie beyond the text."""
        kinds = ("mention", "bot_command", "text_mention", "custom_emoji", "of_tomorrow")
        found = []
        for _ in range(self.random.randint(0, 3)):
            kind, start = self.random.choice(kinds), self.random.choice((0, 0, 1, 5000))
            length = self.random.choice((len("@rolecall_bot"), 1, 0, len(text), 9999))
            found.append(
                {"type": kind, "offset": start, "length": length} | ({"user": BOT_USER} if self.maybe() else {})
            )
        return found

    def media(self) -> Json:
        """One kind of media, also those that the bot cannot read."""
        file = {"file_id": f"f{self._number}", "file_unique_id": "u", "file_size": self.random.choice((0, 1, 10**10))}
        sized = {**file, "width": self.random.choice((0, 90)), "height": 90}
        place = {"latitude": 48.1, "longitude": self.random.choice((-180.0, 11.5))}
        question = {"text": self.text(), "voter_count": 0}
        poll = {"id": "1", "question": self.text(), "options": [{"persistent_id": "1", **question}], "is_closed": False}
        task = {"id": 1, "text": self.text()}
        kinds: tuple[Json, ...] = (
            {"photo": [sized] * self.random.randint(0, 2)}, {"voice": {**file, "duration": 0}},
            {"audio": {**file, "duration": 1, "mime_type": self.name()}}, {"location": place},
            {"video_note": {**file, "length": 1, "duration": 1}}, {"video": {**sized, "duration": 1}},
            {"document": {**file, "file_name": self.name(), "mime_type": self.random.choice(("", "text/plain", "x"))}},
            {"animation": {**sized, "duration": 1}, "document": {**file}}, {"dice": {"emoji": "🎲", "value": 3}},
            {"sticker": {**sized, "type": "regular", "is_animated": False, "is_video": False}},
            {"sticker": {**sized, "type": "regular", "is_animated": False, "is_video": False, "emoji": "😀"}},
            {"venue": {"location": place, "title": self.text(), "address": ""}},
            {"story": {"chat": self.chat(), "id": 1}},
            {"contact": {"phone_number": "1", "first_name": self.name()}},
            {"poll": {**poll, "total_voter_count": 0, "is_anonymous": True, "type": "regular",
                      "allows_multiple_answers": False, "members_only": False, "allows_revoting": False}},
            {"checklist": {"title": self.text(), "tasks": [task]}},
            {"game": {"title": self.text(), "description": "", "photo": [sized]}},
        )  # fmt: skip
        return self.random.choice(kinds)

    def service(self) -> Json:
        """What Telegram itself says in a chat."""
        kinds: tuple[Json, ...] = (
            {"new_chat_members": [self.person(), BOT_USER]}, {"left_chat_member": self.person()},
            {"new_chat_title": self.text()}, {"delete_chat_photo": True}, {"group_chat_created": True},
            {"forum_topic_created": {"name": self.text(), "icon_color": 1}}, {"pinned_message": self.message(0)},
            {"migrate_to_chat_id": -1001234567891}, {"migrate_from_chat_id": -4321},
            {"message_auto_delete_timer_changed": {"message_auto_delete_time": 1}}, {"of_tomorrow": {}},
        )  # fmt: skip
        return self.random.choice(kinds)

    def origin(self) -> Json:
        """Who wrote a forwarded message."""
        at = {"date": 1_700_000_000}
        kinds: tuple[Json, ...] = (
            {"type": "user", **at, "sender_user": self.person()},
            {"type": "hidden_user", **at, "sender_user_name": self.name()},
            {"type": "chat", **at, "sender_chat": self.chat()},
            {"type": "channel", **at, "chat": self.chat(), "message_id": 1},
            {"type": "of_tomorrow", **at},
        )  # fmt: skip
        return self.random.choice(kinds)

    def text(self) -> str:
        return self.random.choice(TEXTS)

    def name(self) -> str:
        return self.random.choice(NAMES)

    def maybe(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance


def _member(status: str) -> Json:
    rights = (
        "can_be_edited is_anonymous can_manage_chat can_delete_messages can_manage_video_chats can_restrict_members "
        "can_promote_members can_change_info can_invite_users can_post_stories can_edit_stories can_delete_stories"
    )
    extra = dict.fromkeys(rights.split(), False) if status == "administrator" else {}
    return {"status": status, "user": BOT_USER, **({"until_date": 0} if status == "kicked" else {}), **extra}
