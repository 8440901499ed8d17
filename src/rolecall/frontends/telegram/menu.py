"""The commands that only Telegram has, and the menus that list all commands."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from telegram import (
    Bot,
    BotCommand,
    BotCommandScope,
    BotCommandScopeAllGroupChats,
    BotCommandScopeAllPrivateChats,
    BotCommandScopeChat,
)
from telegram.error import BadRequest, Forbidden, TelegramError

from rolecall import stats
from rolecall.background import BackgroundTasks
from rolecall.bus.admission import MODES, answered_without_turn, mark_answered
from rolecall.bus.bus import Bus
from rolecall.bus.commands import COMMANDS
from rolecall.bus.conversation import notify, prefer, preferences_of
from rolecall.bus.members import INVITATION_DAYS, Member, Rank
from rolecall.bus.schedule.schedules import schedules_of, unschedule
from rolecall.frontends.reminders import reminder_of, shortened, to_delete
from rolecall.frontends.telegram.access import Access, GroupAdmins, UserStatus
from rolecall.frontends.telegram.admins import Admins, let_in
from rolecall.frontends.telegram.bot import FloodWait, explain
from rolecall.frontends.telegram.message import Incoming, principal_of
from rolecall.frontends.telegram.pickers import (
    Choices,
    CommandReply,
    chosen_message,
    picker_message,
    reminders_message,
)
from rolecall.frontends.texts import LANGUAGES, help_line, say

LISTED_MEMBERS = 50
LISTED_NAME_CHARS = 24
USAGE = {"allow": "/allow ID [admin|user|guest]", "deny": "/deny ID", "broadcast": "/broadcast TEXT"}
Answer = Callable[[Incoming, UserStatus], Awaitable[CommandReply | None]]
logger = logging.getLogger(__name__)
OPEN = (*(command.name for command in COMMANDS), "queue")
ADMIN = ("invite", "users", "allow", "deny", "broadcast")
"""For admins, in private chats."""
TELEGRAM_COMMANDS = frozenset({"start", "help", "whoami", "lang", "model", "role", "queue", "reminders", *ADMIN})
"""Commands answered here; in groups they work without the bot's name."""
PRIVATE_ONLY = ("start",)
NAME = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
MENU_CHARS = 256
TRIES = 3


@dataclass
class Commands:
    """Answers the commands that only Telegram has, without a model or an envelope."""

    bot: Bot
    bus: Bus
    access: Access
    choices: Choices
    front: str = "telegram"
    admins: Admins = field(kw_only=True)
    rights: GroupAdmins = field(kw_only=True)
    _tasks: BackgroundTasks = field(default_factory=BackgroundTasks, repr=False)

    @property
    def names(self) -> frozenset[str]:
        """The commands of the menus, which work in groups without the bot's name: those answered here, and the prefixes
        of roles."""
        prefixes = (prefix for prefix, _ in self.choices.prefixes if prefix.startswith("/"))
        return TELEGRAM_COMMANDS | {prefix.removeprefix("/").lower() for prefix in prefixes}

    async def answer(self, incoming: Incoming, status: UserStatus) -> CommandReply | None:
        """The answer to ``incoming``; None if it is not one of these commands and belongs to the bus.

        Of strangers, only pass ``/start``, since a code may let them in; None then means that they are refused.
        """
        name = incoming.command
        if not status.allowed:
            return await self._redeem(incoming, status) if name == "start" and incoming.argument else None
        if name in ADMIN:
            if status.rank != "admin":
                return CommandReply(say(incoming.language, "admins_only"))
            if not incoming.address.private:
                return CommandReply(say(incoming.language, "privately"))
        answers: dict[str, Answer] = {
            "start": self._start, "help": self._help, "whoami": self._whoami, "lang": self._pick, "model": self._pick,
            "role": self._pick,
            "queue": self._pick, "reminders": self._reminders, "invite": self._invite, "users": self._users,
            "allow": self._allow, "deny": self._deny, "broadcast": self._broadcast,
        }  # fmt: skip
        return await answers[name](incoming, status) if name in answers else None

    async def set_menus(self) -> None:
        """Set the command menus of private chats, groups and each admin, in all languages. Failures of Telegram are
        logged."""
        for prefix, _ in self.choices.prefixes:
            if prefix.lower() in (f"/{name}" for name in ("queue", *ADMIN)):
                logger.warning("Role(match=%r): %s is a command of the bot and reaches no role here", prefix, prefix)
        await self._menus.set_all(await self.admins.ids())

    async def aclose(self) -> None:
        """Cancel menus that are not set yet."""
        await self._tasks.drain(0)

    @property
    def _menus(self) -> Menus:
        return Menus(self.bot, self.choices.prefixes)

    # ── for everyone ─────────────────────────────────────────────────────────────────────────────────

    async def _start(self, incoming: Incoming, status: UserStatus) -> CommandReply | None:
        if incoming.argument:
            return await self._redeem(incoming, status) or CommandReply(say(incoming.language, "code_tries"))
        return CommandReply(say(incoming.language, "welcome"))

    async def _redeem(self, incoming: Incoming, status: UserStatus) -> CommandReply | None:
        """The answer to a code; None after too many wrong ones, once the user was told."""
        language, user = incoming.language, incoming.user
        verdict = await self.access.redeem(user, incoming.name, incoming.argument)
        if verdict == "TOO_MANY":
            first = await self.access.first_refusal(user, "warned")
            await self.access.first_refusal(user)  # this answer covers the refusal too
            return CommandReply(say(language, "code_tries")) if first else None
        if verdict == "WRONG" and status.allowed:  # such as a link that names where the user comes from
            return CommandReply(say(language, "welcome"))
        if verdict == "WRONG":
            return CommandReply(say(language, "code_wrong", id=user))
        if verdict == "admin":
            self._menu_later(user, "admin")
            return CommandReply(say(language, "welcome_admin"))
        return CommandReply(say(language, "welcome"))

    async def _help(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        language = incoming.language
        usages = {command.name: command.usage for command in COMMANDS}
        names = (*OPEN, *(ADMIN if status.rank == "admin" and incoming.address.private else ()))
        lines = [help_line(language, name, usages.get(name) or USAGE.get(name, f"/{name}")) for name in names]
        return CommandReply("\n".join([*lines, *(f"{prefix} – {what}" for prefix, what in self.choices.prefixes)]))

    async def _whoami(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        language, conversation = incoming.language, incoming.address.conversation
        rank = say(language, f"rank_{status.rank}")
        stored = await preferences_of(self.bus, conversation)
        choices = ", ".join(f"/{name} {stored[name]}" for name in ("lang", "model", "role", "queue") if name in stored)
        tokens = (await self._tokens([incoming.user]))[incoming.user]
        lines = [
            say(language, "whoami", id=incoming.user, rank=rank, conversation=conversation),
            say(language, "preferences", choices=choices or say(language, "automatic")),
            *await self._budgets(incoming, status, tokens),
        ]
        return CommandReply("\n".join(lines))

    async def _budgets(self, incoming: Incoming, status: UserStatus, tokens: int) -> list[str]:
        """What the user used today, of how much."""
        language, settings, share = incoming.language, self.bus.settings, float(status.meta.get("share", 1))
        limit, cost_limit = (settings.user_tokens_per_day or 0) * share, (settings.user_cost_per_day or 0) * share
        lines = [
            say(language, "used_of", tokens=tokens, limit=round(limit)) if limit else
            say(language, "used_today", tokens=tokens)
        ]  # fmt: skip
        if cost_limit:
            spent = (await stats.model_usage(self.bus.server, ()))["spenders"].get(incoming.principal, {})
            lines.append(say(language, "cost_of", cost=f"{spent.get('cost', 0):.2f}", limit=f"{cost_limit:.2f}"))
        return lines

    async def _reminders(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        """The list with its buttons. ``delete NUMBER`` deletes a reminder, for who set it or an admin; once, as the
        numbers of the others change."""
        conversation, language, key = incoming.address.conversation, incoming.language, incoming.edition
        found, wanted = await schedules_of(self.bus, conversation), to_delete(incoming.argument)
        if not wanted or await answered_without_turn(self.bus, conversation, key):
            return reminders_message(found, language)
        chosen = reminder_of(found, wanted)
        if chosen is None:
            return CommandReply(say(language, "reminder_unknown"))
        own = chosen.definition.user == incoming.principal
        if not own and not await self.rights.include(status, incoming.address, anonymous=incoming.anonymous):
            return CommandReply(say(language, "not_yours"))
        await unschedule(self.bus, conversation, chosen.id, instance=f"{self.front}:commands:0")
        await mark_answered(self.bus, conversation, key)
        return CommandReply(say(language, "reminder_deleted", text=shortened(chosen.text)))

    async def _pick(self, incoming: Incoming, status: UserStatus) -> CommandReply | None:
        """The buttons; None if the command belongs to the bus: it has an argument, or there are no languages. The
        mode of the queue may be written too."""
        if incoming.argument and incoming.command != "queue":
            return None
        if incoming.command == "lang" and not self.choices.languages:
            return None
        conversation, mode = incoming.address.conversation, incoming.argument.lower()
        if mode in MODES:
            await prefer(self.bus, conversation, "queue", mode, instance=f"{self.front}:commands:0")
            return chosen_message("queue", mode, self.choices, incoming.language)
        return await picker_message(self.bus, conversation, incoming.command, self.choices, incoming.language)

    # ── for admins ──────────────────────────────────────────────────────────────────────────────

    async def _invite(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        code = await self.access.invite(days=INVITATION_DAYS)
        link = f"https://t.me/{self.bot.username}?start={code}"
        return CommandReply(say(incoming.language, "invitation", days=INVITATION_DAYS, link=link))

    async def _users(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        language, members = incoming.language, await self.admins.members()
        if not members:
            return CommandReply(say(language, "nobody"))
        shown = members[:LISTED_MEMBERS]
        tokens = await self._tokens([member.user for member in shown])
        lines = []
        for one in shown:
            used = f", {say(language, 'tokens_today', tokens=tokens[one.user])}" if one.user > 0 else ""
            lines.append(f"{_shown(one)}: {say(language, f'rank_{one.rank}')}{used}")
        more = len(members) - len(shown)
        return CommandReply("\n".join([*lines, *([say(language, "others", count=more)] if more else [])]))

    async def _allow(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        number, _, wanted = incoming.argument.partition(" ")
        ranks: dict[str, Rank] = {"": "user", "user": "user", "guest": "guest", "admin": "admin"}
        rank = ranks.get(wanted.strip().lower())
        if not _is_chat(number) or rank is None:
            return CommandReply(say(incoming.language, "which_user", usage=USAGE["allow"]))
        rank = rank if int(number) > 0 else "guest"
        name = await let_in(self.access, int(number), rank, str(self.bot.username))
        self._menu_later(int(number), rank)
        shown = f"{name} ({number})" if name else number
        return CommandReply(say(incoming.language, "let_in", id=shown, rank=say(incoming.language, f"rank_{rank}")))

    async def _deny(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        number = incoming.argument
        if not _is_chat(number):
            return CommandReply(say(incoming.language, "which_user", usage=USAGE["deny"]))
        # Admins cannot deny themselves: without an admin, the start link would work again.
        if int(number) == status.user or not await self.access.deny(int(number)):
            return CommandReply(say(incoming.language, "cannot_deny", id=number))
        self._menu_later(int(number), "stranger")
        return CommandReply(say(incoming.language, "shut_out", id=number))

    async def _broadcast(self, incoming: Incoming, status: UserStatus) -> CommandReply:
        """Send a notice to the private chat of every user; those who never opened it get none. A text that the admin's
        client cuts is one notice for each piece."""
        if not incoming.argument:
            return CommandReply(say(incoming.language, "what_to_tell", usage=USAGE["broadcast"]))
        users = sorted(await self.admins.users() - {status.user})
        for user in users:
            await notify(
                self.bus, f"{self.front}:{user}", incoming.argument, idempotency=incoming.edition, front=self.front,
                remember=False,
            )  # fmt: skip
        return CommandReply(say(incoming.language, "broadcast", count=len(users)))

    # ── helpers ─────────────────────────────────────────────────────────────────────────

    async def _tokens(self, users: list[int]) -> dict[int, int]:
        """The tokens each user used today."""
        found = await stats.tokens_of(self.bus, [principal_of(user) for user in users])
        return dict(zip(users, found, strict=True))

    def _menu_later(self, user: int, rank: Rank) -> None:
        if user > 0:
            self._tasks.start(self._menus.set_for(user, admin=rank == "admin"), "rolecall telegram menu")


def _is_chat(number: str) -> bool:
    """Whether ``number`` is the id of a user, or of a group, which is negative."""
    digits = number.removeprefix("-")
    return digits.isascii() and digits.isdigit() and 0 < len(digits) < 19 and int(digits) > 0


def _shown(member: Member) -> str:
    name = member.name[:LISTED_NAME_CHARS].strip()
    return f"{name} ({member.user})" if name else str(member.user)


@dataclass(frozen=True)
class Menus:
    """Sets the menus of ``bot``. ``prefixes`` are those that select a role, such as ``/weather``."""

    bot: Bot
    prefixes: Sequence[tuple[str, str]] = ()

    async def set_all(self, admins: Iterable[int]) -> None:
        """Set the menus of private chats and groups, and those of ``admins``."""
        await self._set(BotCommandScopeAllPrivateChats(), OPEN)
        await self._set(BotCommandScopeAllGroupChats(), [name for name in OPEN if name not in PRIVATE_ONLY])
        for user in admins:
            await self.set_for(user, admin=True)

    async def set_for(self, user: int, *, admin: bool) -> None:
        """Set the menu of a user's private chat: the one for admins, or the default."""
        await self._set(BotCommandScopeChat(user), [*OPEN, *ADMIN] if admin else [])

    async def _set(self, scope: BotCommandScope, names: Sequence[str]) -> None:
        """Set one menu in all languages that Telegram has menus for, or delete it if ``names`` is empty."""
        for language in (one for one in LANGUAGES if "-" not in one):
            code = None if language == "en" else language
            if not await self._set_one(scope, code, self._commands(names, language) if names else []):
                return

    async def _set_one(self, scope: BotCommandScope, code: str | None, commands: Sequence[BotCommand]) -> bool:
        """Set or delete one menu; temporary failures are retried. Whether it succeeded."""
        error: TelegramError | None = None
        for _ in range(TRIES):
            try:
                if commands:
                    await self.bot.set_my_commands(commands, scope, code)
                else:
                    await self.bot.delete_my_commands(scope, code)
                return True
            except FloodWait as wait:
                error = wait
                await asyncio.sleep(wait.seconds)
            except (BadRequest, Forbidden) as refused:  # such as the chat of an admin who never opened it
                logger.info("no menu for %s: %s", scope.to_json(), explain(refused))
                return False
            except TelegramError as failed:
                error = failed
        if error is not None:
            logger.warning("a menu was not set: %s", explain(error))
        return False

    def _commands(self, names: Sequence[str], language: str) -> list[BotCommand]:
        own = [BotCommand(name, say(language, f"menu_{name}")) for name in names]
        called = [(prefix.removeprefix("/"), what or prefix) for prefix, what in self.prefixes if prefix[:1] == "/"]
        return own + [BotCommand(name, what[:MENU_CHARS]) for name, what in called if NAME.fullmatch(name)]
