"""Who may use the bot: settings, codes, tries, and what a stranger costs."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from rolecall.bus.bus import Bus
from rolecall.environment import Environment
from rolecall.errors import ConfigError, OverBudget
from rolecall.frontends.telegram.access import TRIES, Access
from rolecall.models.gate import Gate
from rolecall.models.model import Caller, Message, Request, Usage
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings, Terms
from tests.bus.steps import names

ADA, BEN, CY = 7, 8, 9
GROUP = -1001


def access(server: RedisServer, front: str = "telegram", **settings: Any) -> Access:
    return Access(Bus(server, Settings(**settings), "host:1~aaaaaa"), front)


async def rank(gate: Access, user: int, chat: int = 0) -> str:
    return (await gate.status_of(user, chat)).rank


# ── settings ────────────────────────────────────────────────────────────────────────────────────


async def test_it_is_closed_when_nothing_is_set(server: RedisServer) -> None:
    gate = access(server)
    assert await rank(gate, ADA) == "stranger"
    assert await rank(gate, ADA, chat=ADA) == await rank(gate, ADA, chat=GROUP) == "stranger"
    assert not (await gate.status_of(ADA)).allowed


async def test_settings_name_users_admins_and_groups_whose_members_are_guests(server: RedisServer) -> None:
    gate = access(server, telegram_allowed=f"{ADA}, {GROUP}", telegram_admins=f"{BEN},")
    assert [await rank(gate, user) for user in (ADA, BEN, CY)] == ["user", "admin", "stranger"]
    assert [await rank(gate, user, chat=GROUP) for user in (ADA, BEN, CY)] == ["user", "admin", "guest"]
    assert await rank(gate, CY, chat=GROUP - 1) == "stranger"


@pytest.mark.parametrize("everyone", ["*", "*,", " * "])
async def test_a_star_lets_everyone_in_as_a_guest(everyone: str, server: RedisServer) -> None:
    gate = access(server, telegram_allowed=everyone, telegram_admins=str(ADA))
    assert [await rank(gate, user) for user in (ADA, BEN)] == ["admin", "guest"]


@pytest.mark.parametrize("value", ["ada", "1;2", "@ben", "1,,2", "1.5", "*,1"])
def test_what_is_no_list_of_numbers_is_refused_with_what_is_allowed(
    value: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEGRAM_ALLOWED", value)
    with pytest.raises(ConfigError) as refused:
        Environment.read(tmp_path).settings()
    assert f"TELEGRAM_ALLOWED={value} from environment is invalid: expected text such as 11223344" in str(refused.value)


async def test_bots_of_different_names_know_different_people(server: RedisServer) -> None:
    await access(server, "telegram").allow(ADA)
    assert await rank(access(server, "telegram2"), ADA) == "stranger"


# ── admins decide ───────────────────────────────────────────────────────────────────────────────


async def test_an_admin_lets_in_and_shuts_out_and_the_settings_do_not_undo_it(server: RedisServer) -> None:
    gate = access(server, telegram_allowed=f"{ADA},{GROUP}", telegram_invite_code="sesame")
    await gate.allow(CY, "guest", "Cy | the first")
    assert await gate.deny(ADA)
    assert [await rank(gate, user, chat=GROUP) for user in (ADA, CY)] == ["stranger", "guest"]
    assert [(one.user, one.rank, one.name) for one in await gate.members()] == [
        (ADA, "stranger", ""), (CY, "guest", "Cy | the first"),
    ]  # fmt: skip
    assert await gate.redeem(ADA, "Ada", "sesame") == await gate.redeem(ADA, "Ada", await gate.invite()) == "WRONG"
    await gate.allow(ADA)
    assert await rank(gate, ADA) == "user"


async def test_admins_of_the_settings_cannot_be_shut_out(server: RedisServer) -> None:
    gate = access(server, telegram_admins=str(ADA))
    assert not await gate.deny(ADA)
    assert await rank(gate, ADA) == "admin"


# ── codes ───────────────────────────────────────────────────────────────────────────────────────


async def test_an_invite_code_lets_one_in_once_and_only_its_hash_is_kept(server: RedisServer, bus: Bus) -> None:
    gate = access(server)
    code = await gate.invite(days=2)
    assert len(code) >= 22  # 128 bits in base 64
    key = f"{{bus:0}}:front:telegram:code:{hashlib.sha256(code.encode()).hexdigest()}"
    assert await names(bus) == {key}
    assert 86_400_000 < await server.call("PTTL", key) <= 2 * 86_400_000

    assert await gate.redeem(ADA, "Ada", code) == "user"
    assert await gate.redeem(ADA, "Ada", code) == "KNOWN"  # an update that comes again
    assert await gate.redeem(BEN, "Ben", code) == "WRONG"
    assert [await rank(gate, user) for user in (ADA, BEN)] == ["user", "stranger"]
    kept = [await server.call("HGETALL", name) if "members" in name else await server.call("GET", name)
            for name in await names(bus)]  # fmt: skip
    assert code not in str(kept) + str(await names(bus))


async def test_of_many_who_bring_one_code_one_is_let_in(server: RedisServer) -> None:
    gate = access(server)
    code = await gate.invite()
    got = await asyncio.gather(*(gate.redeem(user, "x", code) for user in range(1, 21)))
    assert sorted(got) == ["WRONG"] * 19 + ["user"]


async def test_wrong_tries_are_few_and_then_even_the_right_code_is_not_looked_at(server: RedisServer, bus: Bus) -> None:
    gate = access(server)
    code = await gate.invite()
    assert [await gate.redeem(ADA, "Ada", f"guess {n}") for n in range(TRIES.user)] == ["WRONG"] * TRIES.user
    assert await gate.redeem(ADA, "Ada", code) == "TOO_MANY"
    assert await gate.redeem(BEN, "Ben", code) == "user"
    assert 3_500_000 < await server.call("PTTL", f"{{bus:0}}:front:telegram:tries:{ADA}") <= 3_600_000


async def test_many_together_cannot_guess_on(server: RedisServer) -> None:
    gate = access(server, telegram_invite_code="sesame")
    for user in range(1, TRIES.all + 1):
        assert await gate.redeem(user, "x", "open") == "WRONG"
    assert await gate.redeem(TRIES.all + 1, "x", "sesame") == "TOO_MANY"


async def test_the_code_of_the_settings_makes_guests_as_often_as_it_is_brought(server: RedisServer) -> None:
    gate = access(server, telegram_invite_code="sesame")
    assert [await gate.redeem(user, "x", "sesame") for user in (ADA, BEN, BEN)] == ["guest", "guest", "KNOWN"]
    assert await gate.redeem(CY, "x", "sesam") == "WRONG"
    code = await gate.invite()
    assert await gate.redeem(ADA, "x", code) == "user"  # a guest gains by it


async def test_who_gains_nothing_by_a_code_does_not_use_it_up(server: RedisServer) -> None:
    gate = access(server, telegram_allowed=str(ADA), telegram_admins=str(BEN))
    code = await gate.invite()
    assert [await gate.redeem(user, "x", code) for user in (ADA, BEN, CY)] == ["KNOWN", "KNOWN", "user"]


# ── the start link ──────────────────────────────────────────────────────────────────────────────


async def test_the_start_code_makes_the_first_who_brings_it_admin_and_all_others_void(server: RedisServer) -> None:
    gate = access(server)
    first, second = await gate.start_code(), await gate.start_code()
    assert first and second and first != second
    assert await gate.redeem(ADA, "Ada", second) == "admin"
    assert await gate.redeem(BEN, "Ben", first) == "WRONG"
    assert await gate.start_code() is None
    assert [await rank(gate, user) for user in (ADA, BEN)] == ["admin", "stranger"]


async def test_there_is_no_start_code_while_the_settings_name_an_admin(server: RedisServer) -> None:
    code = await access(server).start_code()
    gate = access(server, telegram_admins=str(ADA))
    assert await gate.start_code() is None
    assert code and await gate.redeem(BEN, "Ben", code) == "WRONG"


async def test_of_many_who_open_the_start_link_one_is_admin(server: RedisServer) -> None:
    gate = access(server)
    codes = [await gate.start_code() for _ in range(3)]
    got = await asyncio.gather(*(gate.redeem(user, "x", str(codes[user % 3])) for user in range(1, 13)))
    assert got.count("admin") == 1 and got.count("WRONG") == 11


# ── rates and budgets ───────────────────────────────────────────────────────────────────────────


async def test_beyond_the_messages_of_a_minute_it_is_said_once(server: RedisServer) -> None:
    gate = access(server, telegram_per_minute=3, telegram_allowed=f"{ADA},{CY}", telegram_admins=str(BEN))
    ada, ben, cy = [await gate.status_of(user) for user in (ADA, BEN, CY)]
    assert [await gate.pace(ada) for _ in range(6)] == ["OK"] * 3 + ["TELL", "SILENT", "SILENT"]
    assert [await gate.pace(ben) for _ in range(6)] == ["OK"] * 6
    assert await gate.pace(cy) == "OK"
    assert 0 < await server.call("PTTL", f"{{bus:0}}:front:telegram:pace:{ADA}") <= 60_000


async def test_a_stranger_is_told_once_an_hour(server: RedisServer) -> None:
    gate = access(server)
    assert [await gate.first_refusal(ADA) for _ in range(3)] == [True, False, False]
    assert await gate.first_refusal(BEN)


async def test_guests_have_half_of_a_users_budget_and_admins_have_no_limit(server: RedisServer) -> None:
    gate = access(server, telegram_allowed=f"{ADA},{GROUP}", telegram_admins=str(BEN))
    shares = {user: (await gate.status_of(user, GROUP)).meta.get("share", 1.0) for user in (ADA, BEN, CY)}
    assert shares == {ADA: 1.0, BEN: 0.0, CY: 0.5}
    assert await used_up(server, shares) == {ADA: 10, BEN: None, CY: 5}


async def used_up(server: RedisServer, shares: dict[int, float]) -> dict[int, int | None]:
    """After how many calls of 100 tokens each is over a budget of 1,000; None for never in 20."""

    async def wake(conversation: str) -> bool:
        return True

    model = Gate(server, "echo@test", Terms(), Settings(user_tokens_per_day=1000), wake)
    calls: dict[int, int | None] = dict.fromkeys(shares)
    for user, share in shares.items():
        for number in range(20):
            caller = Caller("telegram:1", str(number), f"telegram:user:{user}", share)
            try:
                call = await model.enter(Request((Message("user", "hi"),), caller=caller), book=False)
            except OverBudget:
                calls[user] = number
                break
            call.usage = Usage(60, 40)
            await model.left(call, "OK")
    await model.aclose()
    return calls
