"""What operators do on the page beyond the API: scale roles, act on many dead letters, let people in."""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from rolecall import stats
from rolecall.bus.access_keys import create_key, list_keys, revoke_key
from rolecall.bus.dead_letters import DeadLetter, dead_letters, deliver_again, drop, plain, replay
from rolecall.bus.members import INVITATION_DAYS, enrol, list_members, store_code
from rolecall.bus.process.processes import scale
from rolecall.config import MAX_INSTANCES
from rolecall.errors import ConfigError, RolecallError, ServerError
from rolecall.frontends.http.auth import Operator
from rolecall.frontends.http.problems import Problem, text
from rolecall.frontends.http.services import Services, ServicesDep
from rolecall.frontends.http.web.views import role_counts

router = APIRouter(include_in_schema=False)
MEMBERS_FRONT = "telegram"
"""The front end whose users are members."""
MOST_AT_ONCE = 500
LETTERS_A_PAGE = 20


class Count(BaseModel):
    """How many instances a role is to have in each process."""

    count: int = Field(ge=0, le=MAX_INSTANCES)


class LettersAct(BaseModel):
    """What to do with dead letters: those of ``ids``, or without any all that ``search`` matches."""

    model_config = ConfigDict(extra="forbid")

    act: Literal["replay", "drop"]
    search: str = Field("", max_length=200)
    ids: list[str] = Field([], max_length=MOST_AT_ONCE)


class NewKey(BaseModel):
    """A key to create."""

    name: str
    admin: bool = False


class Invitation(BaseModel):
    """Whom to invite."""

    rank: Literal["user", "admin", "guest"] = "user"


class MemberRank(BaseModel):
    """What a member may do from now on; a stranger nothing."""

    rank: Literal["user", "admin", "guest", "stranger"]


@router.post("/web/roles/{name}")
async def scale_role(services: ServicesDep, _: Operator, name: str, body: Count) -> dict[str, dict[str, int]]:
    """Scale a role in every process, at once; 0 pauses it: its messages wait."""
    application = services.application
    role = application.role(name)
    if role is None:
        raise Problem(404, text("no_role", name=repr(name[:60])))
    known = await role_counts(services.bus, application)
    counts = {one: row["count"] for one, row in known.items()} | {name: body.count}
    if (total := sum(counts.values())) > (limit := application.settings.total_instances):
        raise Problem(422, text("too_many_instances", total=total, limit=limit), param="count")
    await scale(services.bus, name, application.count(role), body.count)
    return await role_counts(services.bus, application)


@router.get("/web/usage/data")
async def read_usage(
    services: ServicesDep, _: Operator, days: Annotated[int, Query(ge=1, le=35)] = 14
) -> list[dict[str, Any]]:
    """Tokens and cost by day (UTC), model and user."""
    return await stats.usage_by_day(services.bus, days)


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


async def letters(services: Services, search: str, page: int) -> dict[str, Any]:
    """A page of the dead letters that ``search`` matches, newest first, with the number of each reason."""
    found = matching(await dead_letters(services.bus), search)[::-1]
    pages = max(1, -(-len(found) // LETTERS_A_PAGE))
    rows = [_row(letter) for letter in found[(page - 1) * LETTERS_A_PAGE : page * LETTERS_A_PAGE]]
    reasons = Counter(letter.reason[:100] for letter in found).most_common(8)
    return {"dead_letters": rows, "total": len(found), "page": page, "pages": pages, "reasons": reasons}


def matching(found: Sequence[DeadLetter], search: str) -> list[DeadLetter]:
    """Those with ``search`` in their conversation, role, reason or envelope, in whatever case."""
    wanted = search.casefold()
    return [one for one in found if wanted in "\n".join(_searched(one)).casefold()] if wanted else list(found)


def _searched(letter: DeadLetter) -> tuple[str, ...]:
    return letter.conversation, letter.role, letter.reason, letter.envelope


def _row(letter: DeadLetter) -> dict[str, Any]:
    row = plain(letter)
    envelope = row["envelope"]
    payload = envelope.get("payload") if isinstance(envelope, dict) else None
    said = payload.get("text") if isinstance(payload, dict) else ""
    return {**row, "said": said[:300] if isinstance(said, str) else ""}


@router.post("/web/dead")
async def act_on_letters(services: ServicesDep, _: Operator, body: LettersAct) -> dict[str, Any]:
    """Replay or drop many dead letters, oldest first; at most MOST_AT_ONCE."""
    found = matching(await dead_letters(services.bus), body.search)
    chosen = [letter for letter in found if not body.ids or letter.id in body.ids][:MOST_AT_ONCE]
    done: list[str] = []
    refused: list[str] = []
    for letter in chosen:
        (done if await _act(services, letter, body.act) else refused).append(letter.id)
    return {"done": done, "refused": refused}


async def _act(services: Services, letter: DeadLetter, act: str) -> bool:
    if act == "drop":
        await drop(services.bus, letter.id)
        return True
    try:
        if letter.kind == "delivery":
            await deliver_again(services.bus, letter)
            return True
        return (await replay(services.bus, letter, services.front.instance)).accepted
    except ServerError:
        raise
    except RolecallError:
        return False


# ── people ──────────────────────────────────────────────────────────────────────────────────────


@router.get("/web/people/data")
async def read_people(services: ServicesDep, _: Operator) -> dict[str, Any]:
    """The API keys, the members, and what each user spent today (UTC)."""
    (today,) = await stats.usage_by_day(services.bus, 1)
    kept = [
        {"id": key.id, "name": key.name, "admin": key.admin, "made": key.made} for key in await list_keys(services.bus)
    ]
    members = [
        {"user": str(one.user), "name": one.name, "rank": one.rank, "since": one.since * 1000}
        for one in await list_members(services.bus, MEMBERS_FRONT)
    ]
    return {"keys": kept, "members": members, "spent": today["users"]}


@router.post("/web/people/keys", status_code=201)
async def make_key(services: ServicesDep, _: Operator, body: NewKey) -> dict[str, str]:
    """Create an API key; its secret is told this once."""
    try:
        key, secret = await create_key(services.bus, body.name, admin=body.admin)
    except ConfigError as error:
        raise Problem(422, str(error), param="name") from None
    return {"id": key.id, "secret": secret}


@router.delete("/web/people/keys/{key_id}", status_code=204)
async def drop_key(services: ServicesDep, who: Operator, key_id: str) -> None:
    """Revoke an API key, but not the one that asks."""
    if key_id == who.id:
        raise Problem(409, text("own_key"))
    try:
        await revoke_key(services.bus, key_id)
    except ServerError:
        raise
    except RolecallError:
        raise Problem(404, text("unknown_key")) from None


@router.post("/web/people/invitations", status_code=201)
async def invite(services: ServicesDep, _: Operator, body: Invitation) -> dict[str, Any]:
    """A one-time code for the bot, as `rolecall invite` makes it."""
    code = secrets.token_urlsafe(16)
    digest = hashlib.sha256(code.encode()).hexdigest()
    await store_code(services.bus, MEMBERS_FRONT, digest, body.rank, INVITATION_DAYS)
    return {"code": code, "days": INVITATION_DAYS}


@router.post("/web/people/members/{user}")
async def rank_member(services: ServicesDep, _: Operator, user: int, body: MemberRank) -> dict[str, str]:
    """Change what a member may do."""
    known = {one.user: one for one in await list_members(services.bus, MEMBERS_FRONT)}
    if user not in known:
        raise Problem(404, text("no_member"))
    await enrol(services.bus, MEMBERS_FRONT, user, body.rank, known[user].name)
    return {"rank": body.rank}
