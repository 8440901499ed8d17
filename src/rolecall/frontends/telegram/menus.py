"""The menus of commands that Telegram's clients show, by scope and language."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from telegram import (
    Bot,
    BotCommand,
    BotCommandScope,
    BotCommandScopeAllGroupChats,
    BotCommandScopeAllPrivateChats,
    BotCommandScopeChat,
)
from telegram.error import BadRequest, Forbidden, TelegramError

from rolecall.commands import COMMANDS
from rolecall.frontends.telegram.bot import explain
from rolecall.frontends.telegram.requests import Wait
from rolecall.frontends.telegram.words import LANGUAGES, say

logger = logging.getLogger(__name__)
OPEN = (*(command.name for command in COMMANDS), "queue")
ADMIN = ("invite", "users", "allow", "deny", "broadcast")
"""For admins alone, in private."""
PRIVATE_ONLY = ("start",)
NAME = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
MENU_CHARS = 256
TRIES = 3


@dataclass(frozen=True)
class Menus:
    """Sets the menus of ``bot``. ``prefixes`` are those of roles that users call by them, such as ``/weather``."""

    bot: Bot
    prefixes: Sequence[tuple[str, str]] = ()

    async def set_all(self, admins: Iterable[int]) -> None:
        """The menus of private chats and groups, and those of ``admins``."""
        await self._set(BotCommandScopeAllPrivateChats(), OPEN)
        await self._set(BotCommandScopeAllGroupChats(), [name for name in OPEN if name not in PRIVATE_ONLY])
        for user in admins:
            await self.set_for(user, admin=True)

    async def set_for(self, user: int, *, admin: bool) -> None:
        """The menu of one user's private chat with the bot: that of admins, or the usual one."""
        await self._set(BotCommandScopeChat(user), [*OPEN, *ADMIN] if admin else [])

    async def _set(self, scope: BotCommandScope, names: Sequence[str]) -> None:
        """One menu in all languages; what has none of its own is English. Without names it is removed."""
        for language in LANGUAGES:
            code = None if language == "en" else language
            if not await self._told(scope, code, self._commands(names, language) if names else []):
                return

    async def _told(self, scope: BotCommandScope, code: str | None, commands: Sequence[BotCommand]) -> bool:
        """Whether Telegram has it; it is asked again while it may help."""
        error: TelegramError | None = None
        for _ in range(TRIES):
            try:
                if commands:
                    await self.bot.set_my_commands(commands, scope, code)
                else:
                    await self.bot.delete_my_commands(scope, code)
                return True
            except Wait as wait:
                error = wait
                await asyncio.sleep(wait.seconds)
            except (BadRequest, Forbidden) as refused:  # such as the chat of an admin who never wrote
                logger.info("no menu for %s: %s", scope.to_json(), explain(refused))
                return False
            except TelegramError as failed:
                error = failed
        if error is not None:
            logger.warning("a menu could not be set: %s", explain(error))
        return False

    def _commands(self, names: Sequence[str], language: str) -> list[BotCommand]:
        own = [BotCommand(name, say(language, f"menu_{name}")) for name in names]
        called = [(prefix.removeprefix("/"), what or prefix) for prefix, what in self.prefixes if prefix[:1] == "/"]
        return own + [BotCommand(name, what[:MENU_CHARS]) for name, what in called if NAME.fullmatch(name)]
