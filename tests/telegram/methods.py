"""The methods of the Bot API that the local Telegram knows, with Telegram's rules and words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.telegram.chats import BOT, Chat, Message, World
from tests.telegram.entities import Entity, Refused, accepted, bad
from tests.telegram.updates import checked_secret

NOT_MODIFIED = (
    "message is not modified: specified new message content and reply markup are exactly the same as a current content "
    "and reply markup of the message"
)
REACTIONS = set(
    "👍👎❤🔥🥰👏😁🤔🤯😱🤬😢🎉🤩🤮💩🙏👌🕊🤡🥱🥴😍🐳🌚🌭💯"
    "🤣⚡🍌🏆💔🤨😐🍓🍾💋🖕😈😴😭🤓👻👀🎃🙈😇😨🤝✍🤗🫡💘🆒🗿🤪🙉🙊😎👾🤷😡"
)
DOWNLOAD_LIMIT = 20_000_000
PHOTO_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")

Upload = tuple[str, bytes]


@dataclass
class Params:
    """What a request brought: fields as text, and files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    def text(self, name: str) -> str:
        return self.fields.get(name, "")

    def number(self, name: str) -> int:
        value = self.text(name) or "0"
        if not re.fullmatch(r"-?\d+", value):
            raise bad(f"{name} must be a number")
        return int(value)

    @property
    def chat(self) -> int:
        """The chat that is meant, 0 without one."""
        given = self.text("chat_id")
        return int(given) if re.fullmatch(r"-?\d+", given) else 0

    def flag(self, name: str) -> bool:
        return self.text(name).lower() in ("true", "1")

    def json(self, name: str, otherwise: Any = None) -> Any:
        try:
            return json.loads(self.text(name)) if self.text(name) else otherwise
        except ValueError:
            raise bad(f"can't parse {name}: it is no JSON") from None


class Methods:
    """One bot's methods on a world; each raises Refused as Telegram refuses."""

    def __init__(self, world: World) -> None:
        self.world = world

    def find(self, name: str) -> Callable[[Params], Awaitable[Any]]:
        """The method of this name, in any case of letters."""
        for known in dir(type(self)):
            if known.lower() == name.lower() and known[0].islower() and known != "find":
                return getattr(self, known)  # type: ignore[no-any-return]
        raise Refused(404, "Not Found")

    # Updates

    async def getMe(self, params: Params) -> dict[str, Any]:
        return {**BOT, "can_join_groups": True, "can_read_all_group_messages": True, "supports_inline_queries": False}

    async def getUpdates(self, params: Params) -> list[dict[str, Any]]:
        updates = self.world.updates
        updates.allowed = params.json("allowed_updates", updates.allowed)
        return await updates.poll(params.number("offset"), params.number("limit"), params.number("timeout"))

    async def setWebhook(self, params: Params) -> bool:
        updates = self.world.updates
        updates.allowed = params.json("allowed_updates", updates.allowed)
        secret = checked_secret(params.text("secret_token"))
        await updates.set_webhook(params.text("url"), secret, params.flag("drop_pending_updates"))
        return True

    async def deleteWebhook(self, params: Params) -> bool:
        await self.world.updates.set_webhook("", "", params.flag("drop_pending_updates"))
        return True

    async def getWebhookInfo(self, params: Params) -> dict[str, Any]:
        updates = self.world.updates
        failed = {"last_error_date": int(time.time()), "last_error_message": updates.failure} if updates.failure else {}
        known = {"url": updates.url, "has_custom_certificate": False, "pending_update_count": len(updates.waiting)}
        return known | failed

    # Messages

    async def sendMessage(self, params: Params) -> dict[str, Any]:
        chat = self._chat(params)
        text, entities = _text(params)
        return self._add(chat, params, text, entities)

    async def sendPhoto(self, params: Params) -> dict[str, Any]:
        chat = self._chat(params)
        kept, content = self._file(params, "photo")
        if not content.startswith(PHOTO_STARTS):
            raise bad("IMAGE_PROCESS_FAILED")
        if len(content) > 10_000_000:
            raise Refused(413, "Request Entity Too Large")
        return self._add(chat, params, *_caption(params), {"photo": [{**kept, "width": 800, "height": 800}]})

    async def sendDocument(self, params: Params) -> dict[str, Any]:
        chat = self._chat(params)
        kept, content = self._file(params, "document")
        if not content:
            raise bad("file must be non-empty")
        return self._add(chat, params, *_caption(params), {"document": kept})

    async def sendMessageDraft(self, params: Params) -> bool:
        chat = self._chat(params)
        if not chat.private:
            raise bad("message drafts can be sent only to private chats")
        if not params.number("draft_id"):
            raise bad("invalid draft_id specified")
        text = _text(params)[0] if params.text("text").strip() else ""
        chat.drafts.append((time.monotonic(), params.number("draft_id"), text))
        return True

    async def editMessageText(self, params: Params) -> dict[str, Any]:
        message = self._mine(params, "edit")
        text, entities = _text(params)
        if message.media:
            raise bad("there is no text in the message to edit")
        return self._edit(message, text, entities, _markup(params))

    async def editMessageMedia(self, params: Params) -> dict[str, Any]:
        message, media = self._mine(params, "edit"), params.json("media", {})
        kind = media.get("type", "")
        if message.chat.texts_only:
            raise bad(f"not enough rights to send {kind}s to the chat")
        kept, content = self._file(Params({kind: media.get("media", "")}, params.files), kind)
        if kind == "photo" and not content.startswith(PHOTO_STARTS):
            raise bad("IMAGE_PROCESS_FAILED")
        if not content:
            raise bad("file must be non-empty")
        message.media = {"photo": [{**kept, "width": 800, "height": 800}]} if kind == "photo" else {"document": kept}
        return self._edit(message, "", (), _markup(params))

    async def editMessageReplyMarkup(self, params: Params) -> dict[str, Any]:
        message = self._mine(params, "edit")
        return self._edit(message, message.text, message.entities, _markup(params))

    async def deleteMessage(self, params: Params) -> bool:
        message = self._message(params, "message to delete not found")
        if message.old:
            raise bad("message can't be deleted")
        message.deleted = True
        return True

    async def sendChatAction(self, params: Params) -> bool:
        chat, thread = self._chat(params), params.number("message_thread_id")
        if thread != 1 or not chat.forum:
            _check_thread(chat, thread)
        chat.actions.append((time.monotonic(), params.text("action"), thread or None))
        return True

    async def setMessageReaction(self, params: Params) -> bool:
        message = self._message(params, "message to react not found")
        wanted = [one.get("emoji", "") for one in params.json("reaction", [])]
        if len(wanted) > 1:
            raise bad("REACTIONS_TOO_MANY")
        if set(wanted) - REACTIONS:
            raise bad("REACTION_INVALID")
        message.reactions[BOT["id"]] = wanted
        return True

    async def answerCallbackQuery(self, params: Params) -> bool:
        query = params.text("callback_query_id")
        if self.world.queries.get(query, {}) is not None:
            raise bad("query is too old and response timeout expired or query ID is invalid")
        self.world.queries[query] = {"text": params.text("text"), "show_alert": params.flag("show_alert")}
        return True

    # Files, chats, commands

    async def getFile(self, params: Params) -> dict[str, Any]:
        key = params.text("file_id")
        if key not in self.world.files:
            raise bad("invalid file_id")
        name, content = self.world.files[key]
        if len(content) > DOWNLOAD_LIMIT:
            raise bad("file is too big")
        return {"file_id": key, "file_unique_id": f"u{key}", "file_size": len(content), "file_path": f"{key}/{name}"}

    async def getChat(self, params: Params) -> dict[str, Any]:
        gifts = ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels")
        accepts = dict.fromkeys(gifts, True)
        known = {"accent_color_id": 0, "max_reaction_count": 11, "accepted_gift_types": accepts}
        return self._chat(params, reach=False).as_json() | known

    async def getChatMember(self, params: Params) -> dict[str, Any]:
        chat = self._chat(params, reach=False)
        user = self.world.users.get(params.number("user_id"))
        if user is None:
            raise bad("user not found")
        if user.id in chat.admins:
            return {"status": "creator", "user": user.as_json(), "is_anonymous": False}
        return {"status": "member", "user": user.as_json()}

    async def setMyCommands(self, params: Params) -> bool:
        commands = params.json("commands", [])
        if len(commands) > 100:
            raise bad("BOT_COMMANDS_TOO_MUCH")
        for one in commands:
            if not re.fullmatch(r"/?[a-z0-9_]{1,32}", one["command"]):
                raise bad("BOT_COMMAND_INVALID")
            if not 1 <= len(one["description"]) <= 256:
                raise bad("BOT_COMMAND_DESCRIPTION_INVALID")
        self.world.commands[_scope(params)] = commands
        return True

    async def getMyCommands(self, params: Params) -> list[dict[str, str]]:
        return self.world.commands.get(_scope(params), [])

    async def deleteMyCommands(self, params: Params) -> bool:
        self.world.commands.pop(_scope(params), None)
        return True

    # What they share

    def _chat(self, params: Params, *, reach: bool = True) -> Chat:
        """The chat that is meant; with ``reach`` the bot must be able to write there."""
        if not params.text("chat_id"):
            raise bad("chat_id is empty")
        chat = self.world.chats.get(params.number("chat_id"))
        if chat is None:
            raise bad("chat not found")
        user = self.world.users.get(chat.id)
        if chat.moved_to:
            words = "group chat was upgraded to a supergroup chat"
            raise Refused(400, f"Bad Request: {words}", migrate_to_chat_id=chat.moved_to)
        if reach and user and user.deactivated:
            raise Refused(403, "Forbidden: user is deactivated")
        if reach and user and user.blocked:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if reach and chat.kicked:
            raise Refused(403, "Forbidden: bot was kicked from the supergroup chat")
        return chat

    def _message(self, params: Params, missing: str) -> Message:
        message = self._chat(params).every.get(params.number("message_id"))
        if message is None or message.deleted:
            raise bad(missing)
        return message

    def _mine(self, params: Params, what: str) -> Message:
        message = self._message(params, f"message to {what} not found")
        if not message.mine or message.old:
            raise bad(f"message can't be {what}ed")
        return message

    def _add(
        self, chat: Chat, params: Params, text: str, entities: tuple[Entity, ...], media: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        thread = params.number("message_thread_id")
        _check_thread(chat, thread)
        reply_to = _replied(chat, params)
        added = chat.add(
            BOT, text, entities, markup=_markup(params), thread=thread or None, reply_to=reply_to, media=media or {}
        )
        return added.as_json()

    def _edit(
        self, message: Message, text: str, entities: tuple[Entity, ...], markup: dict[str, Any] | None
    ) -> dict[str, Any]:
        if (text, entities, markup) == (message.text, message.entities, message.markup):
            raise bad(NOT_MODIFIED)
        message.look(text, entities, markup)
        return message.as_json()

    def _file(self, params: Params, name: str) -> tuple[dict[str, Any], bytes]:
        """The file of this name: uploaded now, or named by an id that is known."""
        given = params.text(name)
        uploaded = params.files.get(given.removeprefix("attach://") or name)
        if uploaded:
            return {**self.world.keep(uploaded[1], uploaded[0]), "file_name": uploaded[0]}, uploaded[1]
        if given not in self.world.files:
            raise bad("wrong remote file identifier specified")
        title, content = self.world.files[given]
        return {"file_id": given, "file_unique_id": f"u{given}", "file_name": title}, content


def _text(params: Params) -> tuple[str, tuple[Entity, ...]]:
    _check_mode(params)
    return accepted(params.text("text"), params.json("entities", []))


def _check_mode(params: Params) -> None:
    if params.text("parse_mode"):
        raise bad("can't parse entities: this server takes text with entities, no parse mode")


def _caption(params: Params) -> tuple[str, tuple[Entity, ...]]:
    if not params.text("caption").strip():
        return "", ()
    _check_mode(params)
    return accepted(params.text("caption"), params.json("caption_entities", []), "message caption")


def _markup(params: Params) -> dict[str, Any] | None:
    markup: dict[str, Any] = params.json("reply_markup", {})
    rows = markup.get("inline_keyboard", [])
    for button in (button for row in rows for button in row):
        if not button.get("text"):
            raise bad("can't parse inline keyboard button: text buttons must be non-empty")
        if "callback_data" in button and not 1 <= len(button["callback_data"].encode()) <= 64:
            raise bad("BUTTON_DATA_INVALID")
    return markup if any(rows) or markup.keys() - {"inline_keyboard"} else None


def _check_thread(chat: Chat, thread: int) -> None:
    if thread and thread not in chat.topics:
        raise bad("message thread not found")


def _replied(chat: Chat, params: Params) -> Message | None:
    wanted: dict[str, Any] = params.json("reply_parameters", {})
    if not wanted:
        return None
    message = chat.every.get(wanted["message_id"])
    if message is not None and not message.deleted:
        return message
    if not wanted.get("allow_sending_without_reply"):
        raise bad("message to be replied not found")
    return None


def _scope(params: Params) -> tuple[str, str]:
    scope = params.json("scope", {"type": "default"})
    return json.dumps(scope, sort_keys=True), params.text("language_code")
