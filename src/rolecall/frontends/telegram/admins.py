"""What admins hear in their private chats: who asks for access, models that fail, budgets that are used up."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from telegram import Chat, ChatMember, ChatMemberUpdated

from rolecall import stats
from rolecall.bus.bus import Bus
from rolecall.bus.members import Member, Rank, applicant, note_applicant, visitors
from rolecall.bus.outbox import reply
from rolecall.errors import ServerError
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.message import Address, name_of
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
ASK_SECONDS = 86_400.0
"""A stranger's or a group's request is shown once in this time, and REQUESTS_PER_HOUR of all of them."""
REQUESTS_PER_HOUR = 10
HOUR = 3600.0
WATCH_SECONDS = 60.0
ALARM_SECONDS = 6 * HOUR
"""How long an alarm is not repeated."""


@dataclass
class Admins:
    """The admins of a bot."""

    bus: Bus
    access: Access
    models: Sequence[str] = ()

    async def members(self) -> list[Member]:
        """The users that the settings name and the members, oldest first; then the groups, whose ids are negative."""
        known = await self.access.members()
        own = {member.user for member in known}
        named = sorted(user for user in (self.access.admins | self.access.listed) - own)
        listed = [
            Member(one, (await self.access.status_of(one, min(one, 0))).rank, 0, await self._name_of(one))
            for one in named
        ]
        return sorted([*listed, *known], key=lambda member: member.user < 0)

    async def ids(self) -> list[int]:
        """The ids of all admins."""
        return [member.user for member in await self.members() if member.rank == "admin" and member.user > 0]

    async def users(self) -> set[int]:
        """Everyone with access whom the bot may write to; if that is everyone, who wrote to it in the last 30 days."""
        members = await self.members()
        guests = await visitors(self.bus, self.access.front) if self.access.open else set[int]()
        return {one.user for one in members if one.allowed and one.user > 0} | guests - {one.user for one in members}

    async def request(self, user: int, name: str, language: str | None) -> bool:
        """Ask the admins to let ``user`` in; whether there is an admin to ask. A flood of requests is cut off."""
        return await self._ask(user, name, language, "access_request", {"name": name, "id": str(user)})

    async def request_group(self, chat: int, title: str, name: str, language: str | None) -> bool:
        """Ask the admins whether to answer in a group that ``name`` added the bot to, or wrote to it in."""
        values = {"name": name, "title": title, "id": str(chat)}
        return await self._ask(chat, title, language, "group_request", values)

    async def joined(self, change: ChatMemberUpdated, update: int, bot: str) -> None:
        """The ``bot`` was added to a group: say there how to reach it, or ask the admins whether to answer. An admin
        who adds it has decided that. Nothing is said in a group that was denied, nor to a channel's readers."""
        chat, person = change.chat, change.from_user
        if chat.type not in (Chat.GROUP, Chat.SUPERGROUP):
            return
        if _is_there(change.old_chat_member) or not _is_there(change.new_chat_member):
            return
        if (await self.access.status_of(person.id)).rank == "admin":
            await self.access.allow(chat.id, "guest", name_of(chat))
        group, asked = await self.access.status_of(0, chat.id), False
        if not (group.allowed or group.denied):
            asked = await self.request_group(chat.id, name_of(chat), name_of(person), person.language_code)
            asked = asked and await self.access.first_refusal(chat.id)
        if group.allowed or asked:
            text = say(person.language_code, "group_welcome" if group.allowed else "group_closed", bot=bot)
            conversation = Address(chat.id, None, self.access.front).conversation
            await reply(self.bus, self.access.front, conversation, text, idempotency=f"update:{update}")

    async def tell(self, key: str, values: Mapping[str, str], *, decides: int = 0) -> None:
        """Tell all admins, in their languages; buttons decide about the user or group ``decides``, unless it is 0."""
        front = self.access.front
        for user in await self.ids():
            language = (await applicant(self.bus, front, user))[1]
            rows = request_buttons(decides, language) if decides else []
            await reply(
                self.bus, front, Address(user, None, front).conversation, say(language, key, **values),
                idempotency=secrets.token_hex(16), buttons=rows,
            )  # fmt: skip

    async def watch(self) -> None:
        """Tell of models that fail and of budgets that are used up, until cancelled."""
        away: set[str] = set()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                away = await self.check(away)
            except ServerError as error:
                logger.debug("cannot read the notices for admins: %s", error)

    async def check(self, before: set[str]) -> set[str]:
        """Tell once of each model that is away now and was away ``before``, and of used up budgets; returns the models
        that are away now."""
        usage = await stats.model_usage(self.bus.server, self.models)
        states = {name: str(row["state"]) for name, row in usage["models"].items()}
        away = {name for name, state in states.items() if state.startswith("away")}
        for name in sorted(away & before):
            await self._alarm(f"model:{name}", "model_away", model=name, why=states[name].partition(": ")[2])
        settings = self.bus.settings
        if settings.cost_per_day and usage["cost"] >= settings.cost_per_day:
            spent, limit = f"{usage['cost']:.2f}", f"{settings.cost_per_day:g}"
            await self._alarm("budget", "budget_used", spent=spent, limit=limit)
        for user, spent_by in usage["spenders"].items():
            if self._over(spent_by):
                number = user.rpartition(":")[2]
                await self._alarm(f"budget:{user}", "user_budget_used", name=await self._label(user, number))
        return away

    def _over(self, spent: dict[str, float]) -> bool:
        settings = self.bus.settings
        tokens, cost = settings.user_tokens_per_day, settings.user_cost_per_day
        return bool((tokens and spent.get("tokens", 0) >= tokens) or (cost and spent.get("cost", 0) >= cost))

    async def _label(self, user: str, number: str) -> str:
        known = {str(member.user): member.name for member in await self.members()}
        return f"{known[number]} ({number})" if known.get(number) else user

    async def _name_of(self, user: int) -> str:
        return (await applicant(self.bus, self.access.front, user))[0]

    async def _alarm(self, what: str, key: str, **values: str) -> None:
        if await self.access.first_refusal_within(f"alarm:{what}", ALARM_SECONDS):
            await self.tell(key, values)

    async def _ask(self, number: int, name: str, language: str | None, key: str, values: Mapping[str, str]) -> bool:
        if not await self.ids():
            return False
        await note_applicant(self.bus, self.access.front, number, name, language or "")
        if await self.access.first_refusal_within(f"asked:{number}", ASK_SECONDS):
            count = await self.access.tally("asked", HOUR)
            if count <= REQUESTS_PER_HOUR:
                await self.tell(key, values, decides=number)
            elif count == REQUESTS_PER_HOUR + 1:
                await self.tell("more_requests", {})
        return True


def _is_there(member: ChatMember) -> bool:
    """Whether a member of a chat is in it; one who is restricted may have left."""
    return member.status in (ChatMember.MEMBER, ChatMember.ADMINISTRATOR) or bool(getattr(member, "is_member", False))


async def let_in(access: Access, number: int, rank: Rank, bot: str) -> str:
    """Give a user or a group a ``rank``. Who was a stranger and has written to the ``bot`` is welcomed, once; returns
    the name, empty if it is unknown."""
    name, language = await applicant(access.bus, access.front, number)
    if name and (await access.status_of(number, min(number, 0))).rank == "stranger":
        key = "group_welcome" if number < 0 else "welcome_admin" if rank == "admin" else "welcome"
        place = Address(number, None, access.front).conversation
        await reply(access.bus, access.front, place, say(language, key, bot=bot), idempotency=f"allowed:{number}")
    await access.allow(number, rank, name)
    return name


def request_buttons(number: int, language: str | None) -> list[list[dict[str, str]]]:
    """The buttons of a request: Allow and Deny. ``number`` is a user, or a group if it is negative."""
    return [[{"text": say(language, verb), "callback_data": f"{verb}:{number}"} for verb in ("allow", "deny")]]
