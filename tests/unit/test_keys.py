"""Key names: one shard, one tag, and no two things with one name."""

from __future__ import annotations

from collections import Counter
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from rolecall.redis import keys
from rolecall.redis.keys import ShardKeys

names = st.text(alphabet="ab:1@|{}é", min_size=1, max_size=6)
turns = st.integers(1, 20).map(str) | st.integers(1, 20).map(lambda number: f"c{number}")


@given(names, st.integers(1, 256))
def test_a_conversation_lives_in_one_shard(conversation: str, shards: int) -> None:
    assert keys.shard_of(conversation, shards) == crc32(conversation.encode()) % shards


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 16])
def test_shards_spread_evenly_over_the_nodes_of_a_cluster(nodes: int) -> None:
    shards = keys.all_shards(16, clustered=True)
    assert len({shard.prefix for shard in shards}) == 16 and [shard.number for shard in shards] == list(range(16))
    slots = [key_slot(shard.log.encode()) for shard in shards]
    owned = [sum(slot * nodes // keys.SLOTS == node for slot in slots) for node in range(nodes)]
    assert max(owned) - min(owned) <= 1


def test_conversations_spread_evenly_over_shards() -> None:
    counts = [0] * 16
    for number in range(16_000):
        counts[keys.shard_of(f"telegram:{number}", 16)] += 1
    assert min(counts) > 850


@pytest.mark.parametrize(
    ("priority", "band"), [(100, "h"), (67, "h"), (66, "n"), (50, "n"), (34, "n"), (33, "l"), (0, "l")]
)
def test_a_priority_falls_in_a_band(priority: int, band: str) -> None:
    assert keys.band(priority) == band


@given(names, names, turns, names)
def test_every_key_of_a_shard_carries_its_tag(conversation: str, other: str, turn: str, role: str) -> None:
    for key in all_keys(ShardKeys(7), conversation, other, turn, role):
        assert key.startswith("{bus:7}:")


def all_keys(shard: ShardKeys, conversation: str, other: str, turn: str, role: str) -> list[str]:
    own = (
        shard.conversation,
        shard.mailbox,
        shard.journal,
        shard.schedules,
        shard.history,
        shard.preferences,
        shard.events,
    )
    return [
        *(name(conversation) for name in own), shard.channel(conversation), shard.result(conversation, turn),
        shard.idempotency(conversation, other), shard.outbox(other), shard.statistics("20260101"),
        shard.shown(conversation, turn), shard.shows(conversation, other), shard.votes(conversation, turn),
        shard.blob(other), shard.files(other), shard.aside("envelope"), shard.steps(conversation, turn),
        shard.response(conversation, turn), shard.question(conversation, turn), shard.pressed(conversation, turn),
        shard.offer(conversation, turn), shard.fingerprint(conversation, other),
        *(shard.stream(role, band) for band in keys.BANDS), shard.direct(role, other), shard.alive(other),
        shard.log, shard.dead, shard.deferred, shard.planned, shard.active, shard.principals, shard.clock,
    ]  # fmt: skip


def test_all_keys_are_all_there_are() -> None:
    of_shard = {name for name, value in vars(ShardKeys).items() if callable(value) and not name.startswith("_")}
    assert of_shard == NAMED


NAMED = {
    "aside", "conversation", "mailbox", "journal", "steps", "schedules", "history", "preferences", "events", "channel",
    "result", "response", "idempotency", "outbox", "shown", "shows", "votes", "question", "pressed", "offer",
    "fingerprint", "blob", "files", "statistics", "stream", "direct", "alive",
}  # fmt: skip
"""The kinds of keys that ``all_keys`` makes."""


@given(names, names, turns, names, names)
def test_no_two_kinds_of_keys_share_a_name_whatever_a_conversation_is_called(
    one: str, other: str, turn: str, name: str, role: str
) -> None:
    """A conversation ``a:1`` and turn 1 of ``a``."""
    shard = ShardKeys(0)
    kinds = [key.removeprefix(shard.prefix).split(":")[1] for key in all_keys(shard, one, other, turn, role)]
    alone = Counter(kinds)
    assert {kind for kind, count in alone.items() if count > 1} <= {"d", "r"}  # dead letters; streams of roles


@given(names, names, names, names)
def test_two_messages_never_share_their_idempotency_key(a: str, b: str, c: str, d: str) -> None:
    shard = ShardKeys(0)
    assert (shard.idempotency(a, b) == shard.idempotency(c, d)) == ((a, b) == (c, d))


@given(names, turns, names, turns)
def test_two_turns_never_share_their_result(a: str, b: str, c: str, d: str) -> None:
    shard = ShardKeys(0)
    assert (shard.result(a, b) == shard.result(c, d)) == ((a, b) == (c, d))


@given(names, names, turns)
def test_things_of_different_kinds_never_share_a_name(conversation: str, other: str, turn: str) -> None:
    found = all_keys(ShardKeys(0), conversation, other, turn, "echo")
    assert len(found) == len(set(found))


def test_what_belongs_to_no_shard_lives_in_the_first() -> None:
    for key in (keys.META, keys.SCALE, keys.WORKERS, keys.CONTROL, keys.worker("p"), keys.lease("x")):
        assert key.startswith("{bus:0}:")


@given(names, names, names, names)
def test_two_messages_outside_never_share_what_they_show(a: str, b: str, c: str, d: str) -> None:
    shard = ShardKeys(0)
    assert (shard.shows(a, b) == shard.shows(c, d)) == ((a, b) == (c, d))
