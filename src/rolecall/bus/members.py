"""Members: who may use a front end, their invitation codes, and counters of what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rolecall.bus.bus import Bus
from rolecall.redis import keys
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import pairs

PACKAGE = "rolecall.bus"
REDEEM = script(
    PACKAGE, "scripts/member/redeem",
    names="members code tries all_tries user rank shared has_admin most all_most window name",
)  # fmt: skip
TALLY = script(PACKAGE, "scripts/member/tally", names="counter window")
Rank = Literal["admin", "user", "guest", "stranger"]
INVITATION_DAYS = 7
"""How long an invitation is valid unless its admin says otherwise."""
VISITOR_DAYS = 30


@dataclass(frozen=True, slots=True)
class Member:
    """A user who was let in by a code or an admin, or shut out by an admin (``rank`` stranger). ``since`` is in seconds
    since 1970."""

    user: int
    rank: Rank
    since: int
    name: str

    @property
    def allowed(self) -> bool:
        """Whether the front end serves this person."""
        return self.rank != "stranger"


class Tries(NamedTuple):
    """How many wrong codes one user and all users may try within ``seconds``."""

    user: int
    all: int
    seconds: float


async def find_member(bus: Bus, front: str, user: int) -> Member | None:
    """What is known of ``user``; None for someone who was never let in or shut out."""
    record = await bus.server.fetch("HGET", keys.front(front, "members"), user)
    return None if record is None else _parsed(user, record)


async def list_members(bus: Bus, front: str) -> list[Member]:
    """All members, oldest first."""
    flat = await bus.server.fetch("HGETALL", keys.front(front, "members"))
    found = [_parsed(int(user), record) for user, record in pairs(flat)]
    return sorted(found, key=lambda member: (member.since, member.user))


async def enrol(bus: Bus, front: str, user: int, rank: Rank, name: str) -> None:
    """Make ``user`` a member of ``rank``, or change the rank."""
    seconds, _ = await bus.server.fetch("TIME")
    await bus.server.call("HSET", keys.front(front, "members"), user, f"{rank}|{int(seconds)}|{name}")


async def note_bot(bus: Bus, front: str, number: int, name: str) -> None:
    """Note which bot the front end serves."""
    await bus.server.call("SET", keys.front(front, "bot"), f"{number} {name}")


async def served_bot(bus: Bus, front: str) -> tuple[int, str] | None:
    """Id and name of the bot that the front end serves, or served last; None if it never served one."""
    found = await bus.server.fetch("GET", keys.front(front, "bot"))
    number, _, name = (found or b"").decode().partition(" ")
    return (int(number), name) if number else None


async def store_code(bus: Bus, front: str, digest: str, rank: str, days: float) -> None:
    """Store a one-time code, by its SHA-256, that gives the user who redeems it a ``rank``."""
    await bus.server.call("SET", keys.front(front, f"code:{digest}"), rank, "PX", milliseconds(days * 86_400))


async def redeem(
    bus: Bus, front: str, user: int, name: str, digest: str, *, rank: str, shared: str, has_admin: bool, tries: Tries
) -> Literal["admin", "user", "guest", "KNOWN", "WRONG", "TOO_MANY"]:
    """Redeem a code for ``user``, atomically: of two users with the same code, one gets in. ``rank`` is what the
    settings give the user, ``shared`` the rank of the shared invitation code if this is it, ``has_admin`` whether the
    settings name an admin. Returns the new rank, KNOWN if the code gives nothing new and stays valid, WRONG, or
    TOO_MANY after too many wrong tries."""
    verdict: bytes = await bus.server.run(
        REDEEM, members=keys.front(front, "members"), code=keys.front(front, f"code:{digest}"),
        tries=keys.front(front, f"tries:{user}"), all_tries=keys.front(front, "tries"), user=user, rank=rank,
        shared=shared, has_admin=int(has_admin), most=tries.user, all_most=tries.all,
        window=milliseconds(tries.seconds), name=name,
    )  # fmt: skip
    return verdict.decode()  # type: ignore[return-value]  # the script answers only these words


async def count_within(bus: Bus, front: str, counter: str, seconds: float) -> int:
    """Count one more under ``counter`` in a window of ``seconds`` that starts with the first; returns the count."""
    return int(await bus.server.run(TALLY, counter=keys.front(front, counter), window=milliseconds(seconds)))


async def record_move(bus: Bus, front: str, new: int, old: int) -> None:
    """Remember that the chat ``old`` goes on as ``new``. Its conversations keep the names that they began with, so
    memory, preferences and waiting turns need not move."""
    await bus.server.call("HSET", keys.front(front, "moved"), new, old)


async def moved_chats(bus: Bus, front: str) -> dict[int, int]:
    """The chats that go on under another id: the id before by the id now."""
    return {int(new): int(old) for new, old in pairs(await bus.server.fetch("HGETALL", keys.front(front, "moved")))}


async def note_applicant(bus: Bus, front: str, user: int, name: str, language: str) -> None:
    """Remember for 30 days who asks for access, until an admin decides."""
    await bus.server.call(
        "SET", keys.front(front, f"applicant:{user}"), f"{language}|{name}", "PX", milliseconds(30 * 86_400)
    )


async def applicant(bus: Bus, front: str, user: int) -> tuple[str, str]:
    """The name and the language of one who asked for access; empty if unknown."""
    record = await bus.server.fetch("GET", keys.front(front, f"applicant:{user}"))
    language, _, name = (record or b"|").decode("utf-8", "replace").partition("|")
    return name, language


async def note_visitor(bus: Bus, front: str, user: int) -> None:
    """Remember for VISITOR_DAYS that ``user`` wrote to the front end in private."""
    key, (seconds, _) = keys.front(front, "visitors"), await bus.server.fetch("TIME")
    await bus.server.call("ZADD", key, int(seconds), user)
    await bus.server.call("ZREMRANGEBYSCORE", key, "-inf", int(seconds) - VISITOR_DAYS * 86_400)


async def visitors(bus: Bus, front: str) -> set[int]:
    """The users of ``note_visitor``."""
    return {int(user) for user in await bus.server.fetch("ZRANGE", keys.front(front, "visitors"), 0, -1)}


def _parsed(user: int, record: bytes) -> Member:
    rank, since, name = record.decode("utf-8", "replace").split("|", 2)
    return Member(user, rank, int(since), name)  # type: ignore[arg-type]  # only written here and in redeem.lua
