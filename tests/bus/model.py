"""What the bus ought to do, in plain Python, and the check of a whole shard against it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rolecall.bus.envelope import decode
from rolecall.redis.keys import ShardKeys

SHARD = ShardKeys(0)
FINALS = (b"final", b"error", b"cancelled")
Row = tuple[bytes, int, Any]

DUMP = b"""
local function pending(key)
  local rows = redis.pcall('XPENDING', key, 'g', '-', '+', 1000)
  return rows.err and {} or rows
end
local read = {
  string = function(key) return redis.call('GET', key) end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  hash = function(key) return redis.call('HGETALL', key) end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  stream = function(key)
    if key == '{bus:0}:l' then return redis.call('XLEN', key) end
    return { redis.call('XRANGE', key, '-', '+'), pending(key) }
  end,
}
local rows = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  rows[#rows + 1] = { key, kind, redis.call('PTTL', key), read[kind](key) }
end
return rows
"""
"""Every key with its type, its time to live and what it holds; of a work stream also who holds what."""


@dataclass(eq=False)
class Turn:
    """A turn as it ought to be. ``where`` is waiting, entry, held (it sleeps and has not begun), deferred or done."""

    conversation: str
    id: str
    band: str
    priority: int
    user: str
    outbox: bool
    where: str = "entry"
    stream: str = ""
    hop: int = 0
    entry: str = ""
    holder: str = ""
    count: int = 0
    expired: bool = False
    due: bool = False
    wake: tuple[str, int] = ("", 0)
    texts: list[str] = field(default_factory=list)
    """What its message and those that joined it say."""
    group: str = ""
    hold: bool = False
    caller: Turn | None = None
    """The turn whose handler made this one, if it is a call, which is the result of its step ``key``."""
    key: str = ""
    calls: list[Turn] = field(default_factory=list)
    stepped: bool = False
    """Whether steps are recorded, those of hop ``journal_hop``: ``steps``, of which ``results`` have come."""
    journal_hop: int = -1
    steps: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)
    waits: set[str] = field(default_factory=set)
    scheduled: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def asleep(self) -> bool:
        return self.where in ("held", "deferred", "suspended")

    @property
    def member(self) -> str:
        """What it is called in the sets of the shard."""
        return f"{self.conversation}\x1f{self.id}" if self.control or self.caller else self.conversation

    def record(self, hop: int, key: str) -> None:
        """A step of the handler at ``hop`` is recorded, or begins."""
        if self.journal_hop != hop:
            self.steps, self.results = set(), set()
        self.stepped, self.journal_hop = True, hop
        self.steps.add(key)

    @property
    def control(self) -> bool:
        return self.id.startswith("c")

    def put(self, stream: str, hop: int) -> None:
        """Its entry is now a new one in ``stream``."""
        self.where, self.stream, self.hop, self.holder, self.count, self.expired = "entry", stream, hop, "", 0, False


@dataclass
class Conversation:
    """A conversation as it ought to be."""

    name: str
    turns: list[Turn] = field(default_factory=list)
    running: Turn | None = None
    waiting: list[Turn] = field(default_factory=list)
    finals: list[tuple[str, str]] = field(default_factory=list)
    ids: dict[str, tuple[str, tuple[str, int]]] = field(default_factory=dict)
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Idempotency key → which of its turn's texts the message is, and the newest edit of it."""
    notices: set[str] = field(default_factory=set)
    history: int = 0
    preferences: dict[str, str] = field(default_factory=dict)
    given: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    cancelled_early: set[str] = field(default_factory=set)

    def turn_of(self, idem: str) -> Turn:
        """The turn of the message that was admitted under this key."""
        return next(turn for turn in self.turns if turn.id == self.ids[idem][0])

    def unfinished(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.where != "done"]

    def open_control(self) -> list[Turn]:
        return [turn for turn in self.unfinished() if turn.control]


@dataclass
class Model:
    """A shard as it ought to be."""

    conversations: dict[str, Conversation] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    outbox: list[tuple[str, str]] = field(default_factory=list)
    dead: int = 0
    schedules: dict[str, tuple[str, Turn | None]] = field(default_factory=dict)
    """Id → the conversation of a schedule, and the last turn that it began."""
    forged: dict[tuple[str, str], str] = field(default_factory=dict)
    """(stream, entry) → holder of entries that belong to no turn."""

    def turns(self) -> Iterator[Turn]:
        for conversation in self.conversations.values():
            yield from conversation.turns

    def unfinished_of(self, user: str) -> int:
        return sum(turn.user == user and turn.where != "done" for turn in self.turns())

    def active(self) -> set[str]:
        running = {name for name, c in self.conversations.items() if c.running}
        return running | {t.member for t in self.turns() if (t.control or t.caller) and t.where != "done"}

    def finish(self, turn: Turn, kind: str) -> None:
        conversation = self.conversations[turn.conversation]
        turn.where, turn.holder = "done", ""
        for call in turn.calls:
            if call.where != "done":
                call.caller, caller = None, call.caller
                self.finish_quietly(call)
                call.caller = caller
        if turn.caller is not None:
            return self.settle(turn.caller, turn.key)
        conversation.finals.append((turn.id, kind))
        if turn.outbox:
            self.outbox.append((turn.conversation, turn.id))

    def finish_quietly(self, call: Turn) -> None:
        """End a call of which nobody wants to hear any more, and its calls."""
        call.where, call.holder = "done", ""
        for one in call.calls:
            self.finish_quietly(one)

    def settle(self, turn: Turn, key: str) -> None:
        """The step ``key`` has its result: the turn goes on if it was the last it waits for."""
        if turn.where == "done" or key not in turn.steps:
            return
        turn.results.add(key)
        if turn.where == "suspended" and turn.waits <= turn.results:
            turn.put(*turn.wake)

    def release(self, conversation: Conversation) -> None:
        conversation.running = None
        if conversation.waiting:
            self.run(conversation, conversation.waiting.pop(0))

    def run(self, conversation: Conversation, turn: Turn) -> None:
        """Let ``turn`` be the one that runs, or sleep out its hold."""
        conversation.running = turn
        if turn.hold:
            turn.where, turn.wake = "held", (SHARD.stream("manager", turn.band), 0)
        else:
            turn.put(SHARD.stream("manager", turn.band), 0)

    def end(self, turn: Turn, kind: str) -> None:
        """Finish ``turn`` wherever it is, and release if it ran."""
        conversation = self.conversations[turn.conversation]
        if turn.where == "waiting":
            conversation.waiting.remove(turn)
            conversation.cancelled_early.add(turn.id)
        self.finish(turn, kind)
        if conversation.running is turn:
            self.release(conversation)


@dataclass
class Shown:
    """A shard as the server shows it."""

    rows: dict[str, Row]

    @classmethod
    def of(cls, reply: list[Any]) -> Shown:
        return cls({_named(key.decode()): (kind, ttl, value) for key, kind, ttl, value in reply})

    def values(self) -> dict[str, Any]:
        """All but what reading alone changes: times to live, idle times, streams made for a group to wait at."""
        found = {key: _comparable(kind, value) for key, (kind, _, value) in self.rows.items()}
        return {key: value for key, value in found.items() if value != ([], [])}

    def fields(self, key: str) -> dict[str, str]:
        flat = self.rows[key][2] if key in self.rows else []
        return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

    def members(self, key: str) -> set[str]:
        return {member.decode() for member in self.rows[key][2][::2]} if key in self.rows else set()

    def ttl(self, key: str) -> int:
        return self.rows[key][1]

    def entries(self, stream: str) -> list[tuple[str, dict[bytes, bytes]]]:
        found = self.rows[stream][2][0] if stream in self.rows else []
        return [(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in found]

    def pending(self, stream: str) -> dict[str, tuple[str, int]]:
        rows = self.rows[stream][2][1] if stream in self.rows else []
        return {row[0].decode(): (row[1].decode(), row[3]) for row in rows}

    def work_streams(self) -> list[str]:
        return [key for key in self.rows if key.startswith("{bus:0}:r:")]


def check(model: Model, shown: Shown) -> None:
    """Everything the design promises about a shard, at rest between two steps. Notes each turn's entry id."""
    check_entries(model, shown)
    for conversation in model.conversations.values():
        check_conversation(conversation, shown)
        check_journal(conversation, shown)
        check_answers(conversation, shown)
    check_shard(model, shown)
    assert set(shown.rows) - set(shown.work_streams()) == set(expected_keys(model)), "keys nobody knows, or missing"


def check_entries(model: Model, shown: Shown) -> None:
    """Each turn in flight has one entry, where and with whom it ought to be; nothing else is there."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for stream in shown.work_streams():
        entries = shown.entries(stream)
        assert set(shown.pending(stream)) <= {entry_id for entry_id, _ in entries}, "held but gone"
        for entry_id, fields in entries:
            if (stream, entry_id) not in model.forged:
                key = (fields[b"c"].decode(), fields[b"t"].decode())
                found.setdefault(key, []).append((stream, entry_id))
    for turn in model.turns():
        places = found.pop((turn.conversation, turn.id), [])
        if turn.where != "entry":
            assert not places, f"{turn.id} is {turn.where} and has an entry"
            continue
        assert [stream for stream, _ in places] == [turn.stream], f"{turn.id}: {places}, not once in {turn.stream}"
        turn.entry = places[0][1]
        entry = dict(shown.entries(turn.stream))[turn.entry]
        assert decode(entry[b"e"], parts=entry.get(b"x", b"")).text == turn.text, f"{turn.id} says something else"
        held = shown.pending(turn.stream).get(turn.entry, ("", 0))
        assert held == (turn.holder, turn.count), f"{turn.id}: held {held}, not {(turn.holder, turn.count)}"
    assert not found, f"entries of nobody: {found}"


def check_conversation(conversation: Conversation, shown: Shown) -> None:
    """The hash says who runs and where its entry is, the mailbox who waits; what rests has its time to live."""
    state, running = shown.fields(SHARD.conversation(conversation.name)), conversation.running
    assert state.get("cur") == (running.id if running else None)
    at = None if running is None else "z" if running.asleep else f"{running.stream}|{running.entry}"
    assert state.get("at") == at
    assert int(state.get("ctl", 0)) == len(conversation.open_control())
    assert int(state.get("seq", 0)) == conversation.given[False]
    waiting = [raw.decode() for raw in shown.rows.get(SHARD.mailbox(conversation.name), (b"", 0, []))[2]]
    assert waiting == [turn.id for turn in conversation.waiting]
    assert [int(turn) for turn in waiting] == sorted(int(turn) for turn in waiting)
    kept = (SHARD.conversation, SHARD.history, SHARD.preferences)
    if not running and not conversation.open_control():
        assert all(shown.ttl(key(conversation.name)) > 0 for key in kept if key(conversation.name) in shown.rows)
    for call in conversation.unfinished():
        if call.caller:
            at = "z" if call.asleep else f"{call.stream}|{call.entry}"
            assert shown.fields(SHARD.journal(conversation.name))[f"{call.id}:a"] == at
    for turn in conversation.unfinished():
        if turn.stepped:
            fields = set(shown.fields(SHARD.steps(conversation.name, turn.id))) - {"h", "b"}
            assert {name for name in fields if name[0] not in "=cd"} == turn.steps
            assert {name[1:] for name in fields if name[0] == "="} == turn.results
    if running:
        assert shown.ttl(SHARD.conversation(conversation.name)) == -1, "a conversation at work may be forgotten"


def check_journal(conversation: Conversation, shown: Shown) -> None:
    """It has what is unfinished and no more."""
    expected = {f"{turn.id}:{name}" for turn in conversation.unfinished() for name in _fields(turn)}
    for call in conversation.unfinished():
        if call.caller and call.asleep:
            expected |= {f"{call.id}:defer:{name}" for name in _sleeping(call)}
    if conversation.running and conversation.running.asleep:
        expected |= {f"defer:{name}" for name in _sleeping(conversation.running)}
    journal = shown.fields(SHARD.journal(conversation.name))
    assert set(journal) == expected
    for turn in conversation.unfinished():
        assert (journal[f"{turn.id}:b"], journal[f"{turn.id}:u"]) == (turn.band, turn.user)
        parts = journal.get(f"{turn.id}:x", "").encode()
        assert decode(journal[f"{turn.id}:e"].encode(), parts=parts).text == turn.text, f"{turn.id} says something else"


def _sleeping(turn: Turn) -> str:
    return {"held": "sh", "deferred": "she", "suspended": "sheqwtnd"}[turn.where]


def _fields(turn: Turn) -> str:
    more = "s" * turn.stepped + "c" * bool(turn.calls)
    if turn.caller:
        return f"eburka{more}"
    more += "x" * (len(turn.texts) > 1) + "g" * bool(turn.group) + "d" * turn.hold + "t" * turn.scheduled
    return f"ebuor{more}"


def check_answers(conversation: Conversation, shown: Shown) -> None:
    """One final event and one result per finished turn, in order; cancelling who waits is the one exception."""
    events = shown.entries(SHARD.events(conversation.name))
    finals = [(e[b"t"].decode(), e[b"k"].decode(), entry_id) for entry_id, e in events if e[b"k"] in FINALS]
    assert [(turn, kind) for turn, kind, _ in finals] == conversation.finals
    assert len({turn for turn, _ in conversation.finals}) == len(conversation.finals)
    for turn, kind, entry_id in finals:
        key = SHARD.result(conversation.name, turn)
        at, _, final = shown.rows[key][2].partition(b" ")
        assert at.decode() == entry_id
        assert msgspec.json.decode(final)["kind"] == kind
        assert shown.ttl(key) > 0
    in_order = [int(t) for t, _ in conversation.finals if t[0] != "c" and t not in conversation.cancelled_early]
    assert in_order == sorted(in_order), "answered out of order"
    assert shown.ttl(SHARD.events(conversation.name)) > 0
    history = shown.rows.get(SHARD.history(conversation.name), (b"", 0, []))[2]
    assert len(history) == conversation.history
    assert shown.fields(SHARD.preferences(conversation.name)) == conversation.preferences


def check_shard(model: Model, shown: Shown) -> None:
    """What is counted over all conversations."""
    assert shown.members(SHARD.active) == model.active()
    deferred = {turn.member for turn in model.turns() if turn.asleep}
    planned = {f"{conversation}\x1f{one}" for one, (conversation, _) in model.schedules.items()}
    assert shown.members(SHARD.planned) == planned
    assert shown.members(SHARD.deferred) == deferred | planned
    assert shown.members(SHARD.suspended) == {turn.member for turn in model.turns() if turn.where == "suspended"}
    users = {turn.user for turn in model.turns() if turn.where != "done" and turn.user}
    assert shown.fields(SHARD.principals) == {user: str(model.unfinished_of(user)) for user in users}
    outbox = [(e[b"c"].decode(), e[b"t"].decode()) for _, e in shown.entries(SHARD.outbox("front"))]
    assert outbox == model.outbox
    assert len(shown.entries(SHARD.dead)) == model.dead
    assert int(shown.fields(TODAY).get("turns", 0)) == sum(len(c.finals) for c in model.conversations.values())


def expected_keys(model: Model) -> Iterator[str]:
    """Every key there may be beside the work streams; each of them must be there."""
    for c in model.conversations.values():
        yield from (SHARD.conversation(c.name), SHARD.events(c.name))
        yield from (SHARD.idempotency(c.name, idem) for idem in (*c.ids, *c.notices))
        yield from (SHARD.result(c.name, turn) for turn, _ in c.finals)
        yield from (SHARD.steps(c.name, turn.id) for turn in c.unfinished() if turn.stepped)
        lists = {SHARD.mailbox: c.waiting, SHARD.journal: c.unfinished(), SHARD.history: c.history}
        yield from (key(c.name) for key, what in {**lists, SHARD.preferences: c.preferences}.items() if what)
    yield from {SHARD.schedules(conversation) for conversation, _ in model.schedules.values()}
    yield from (SHARD.alive(process) for process in model.alive)
    if model.conversations:
        yield SHARD.log
    whole = {
        SHARD.active: model.active(),
        SHARD.deferred: model.schedules or any(turn.asleep for turn in model.turns()),
        SHARD.suspended: any(turn.where == "suspended" for turn in model.turns()),
        SHARD.planned: model.schedules,
        SHARD.principals: any(turn.user for turn in model.turns() if turn.where != "done"),
        SHARD.outbox("front"): model.outbox,
        SHARD.dead: model.dead,
        TODAY: any(c.finals for c in model.conversations.values()),
    }
    yield from (key for key, what in whole.items() if what)


TODAY = "{bus:0}:s:today"
"""Stands for the statistics of whatever day it is."""


def _comparable(kind: bytes, value: Any) -> Any:
    if kind == b"hash":
        return dict(zip(value[::2], value[1::2], strict=True))
    if kind == b"stream" and not isinstance(value, int):
        return value[0], [row[:2] for row in value[1]]
    return value


def _named(key: str) -> str:
    return TODAY if key.startswith("{bus:0}:s:") else key
