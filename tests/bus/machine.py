"""Random walks over the bus: each step is one verb of some process, right or wrong, early or late; after each the
whole shard has to be what the model says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from rolecall.bus.admission import Mode, admit, edit_message
from rolecall.bus.bus import Bus
from rolecall.bus.cancel import cancel_turn, stop_conversation
from rolecall.bus.conversation import notify
from rolecall.bus.envelope import Envelope, encode
from rolecall.bus.leases import Delivery, Demand, Order, emit, hand_back, renew, streams_of, take
from rolecall.bus.maintenance import audit_one, promote, rescue_direct
from rolecall.bus.schedule.schedules import fire, schedule, unschedule
from rolecall.bus.settle import Awaited, Refill, Supply, bury, complete, defer, hop, next_band, suspend
from rolecall.bus.steps.journal import NewStep, Step, begin, record
from rolecall.bus.turn import Records
from rolecall.redis import keys
from rolecall.redis.server import RedisServer, Server, server_ms
from rolecall.settings import Settings
from tests.bus.model import DUMP, SHARD, Conversation, Model, Shown, Turn, check

Any_ = TypeVar("Any_")
Focus = Literal["all", "work", "fronts"]
"""What is walked through: all verbs, or mostly those of workers, or mostly those of front ends."""
SETTINGS = Settings(
    mailbox_limit=2,
    in_flight_limit=3,
    user_limit=6,
    user_soft_limit=3,
    lease_seconds=60,
    heartbeat_seconds=5,
    max_deliveries=2,
)
PROCESSES = ("host:1~aaaaaa", "host:2~bbbbbb")
NAMES = ("a", "a:1", "b", "c")
ROLES = ("manager", "echo", "command")
DESTINATIONS = ("manager", "echo", *(f"echo@{process}" for process in PROCESSES * 2))

name, process = st.sampled_from(NAMES), st.integers(0, 1)
which = st.integers(0, 11)
"""Which of several. Of deliveries: three in four times one that its process still holds, else any seen so far."""


def records() -> Records:
    made = Records("r:host:1:0")
    made.add("NOTE", "x")
    return made


class BusMachine(RuleBasedStateMachine):
    """``server`` and ``loop`` are set on a subclass by ``machine_on``."""

    server: ClassVar[RedisServer]
    spoken_to: ClassVar[Server]
    loop: ClassVar[asyncio.AbstractEventLoop]
    focus: ClassVar[Focus]

    def __init__(self) -> None:
        super().__init__()
        self.now(self.server.call("FLUSHALL"))
        self.buses = [Bus(self.spoken_to, SETTINGS, process) for process in PROCESSES]
        self.model = Model()
        self.seen: list[Delivery] = []
        self.taken: list[Delivery] = []
        self.shown = Shown({})
        self.nothing_happens = False
        self.notified = 0

    def now(self, work: Coroutine[Any, Any, Any_]) -> Any_:
        return self.loop.run_until_complete(work)

    def check(self) -> None:
        shown = Shown.of(self.now(self.server.call("EVAL", DUMP, 0)))
        check(self.model, shown)
        if self.nothing_happens:
            before, after = self.shown.values(), shown.values()
            written = {key for key in before | after if before.get(key) != after.get(key)}
            assert not written, f"something was written: {written}"
        self.shown, self.nothing_happens = shown, False

    # ── the way in ──────────────────────────────────────────────────────────────────────────────

    @rule(
        name=name, key=st.integers(0, 9), text=st.sampled_from("xxxy"), user=st.sampled_from(("", "u", "u", "v")),
        priority=st.sampled_from((10, 50, 50, 90)), outbox=st.booleans(), control=st.sampled_from((0, 0, 0, 1)),
        mode=st.sampled_from(("queue", "queue", "collect", "interrupt")), group=st.sampled_from(("", "", "g")),
        hold=st.sampled_from((0, 0, 1000)),
    )  # fmt: skip
    def admit(
        self, name: str, key: int, text: str, user: str, priority: int, outbox: bool, control: int, mode: Mode,
        group: str, hold: int,
    ) -> None:  # fmt: skip
        if self.focus == "work":
            mode, group, hold = "queue", "", 0
        control = control if self.focus != "fronts" else 0
        conversation = self.model.conversations.get(name, Conversation(name))
        # Three in ten repeat a key; the others are new.
        idem = str(key) if key < 3 else f"new{len(conversation.ids)}"
        host = None if control else self._host(conversation, user, mode, group)
        ended = self._interrupted(conversation, user) if mode == "interrupt" and not control else None
        envelope = Envelope(conversation=name, payload={"text": text}, priority=priority, reply_to="front")
        got = self.now(
            admit(
                self.buses[0],
                envelope, idempotency=idem, principal=user, outbox=outbox, control=bool(control), mode=mode,
                group=group, hold=hold,
            )
        )  # fmt: skip
        expected = self._admission(conversation, idem, (text, priority), user, bool(control), host, ended)
        assert got.outcome == expected
        if expected == "MERGED":
            assert host is not None
            self._join(conversation, idem, (text, priority), host, hold)
            assert got.turn == host.id
        elif expected in ("RUN", "WAIT"):
            if ended:
                conversation.history = min(conversation.history + 1, SETTINGS.assistant_history_limit)
                self.model.end(ended, "cancelled")
            turn = self._accept(conversation, idem, (text, priority), user, outbox, got.turn)
            if not control:
                turn.group, turn.hold = group, bool(hold)
                self._place(conversation, turn)
            assert got.place == (len(conversation.waiting) if expected == "WAIT" else 0)
        else:
            self.nothing_happens = True
        self.check()

    def _host(self, conversation: Conversation, user: str, mode: Mode, group: str) -> Turn | None:
        """The newest turn of the user that has not begun and takes a message in."""
        running = conversation.running
        own = [turn for turn in conversation.waiting if turn.user == user]
        own = [running, *own] if running and running.where == "held" and running.user == user else own
        fitting = [turn for turn in own if mode == "collect" or (group and turn.group == group)]
        return fitting[-1] if fitting else None

    def _interrupted(self, conversation: Conversation, user: str) -> Turn | None:
        return conversation.running if conversation.running and conversation.running.user == user else None

    def _admission(
        self, conversation: Conversation, idem: str, body: tuple[str, int], user: str, control: bool,
        host: Turn | None, ended: Turn | None,
    ) -> str:  # fmt: skip
        if idem in conversation.ids:
            return "DUP" if conversation.ids[idem][1] == body else "CONFLICT"
        if host is not None:
            return "MERGED"
        less = ended is not None
        if control:
            full = user and self.model.unfinished_of(user) >= 2 * SETTINGS.user_limit
            return "FULL" if full or len(conversation.open_control()) >= 4 else "RUN"
        if user and self.model.unfinished_of(user) - less >= SETTINGS.user_limit:
            return "FULL"
        if conversation.running:
            if len(conversation.waiting) - less >= SETTINGS.mailbox_limit:
                return "FULL"
            return "WAIT" if conversation.waiting or not ended else "RUN"
        return "BUSY" if len(self.model.active()) >= SETTINGS.in_flight_limit else "RUN"

    def _join(self, conversation: Conversation, idem: str, body: tuple[str, int], host: Turn, hold: int) -> None:
        conversation.ids[idem], conversation.parts[idem] = (host.id, body), (len(host.texts), -1)
        host.texts.append(body[0])
        host.hold = host.hold or bool(hold)

    def _accept(
        self, conversation: Conversation, idem: str, body: tuple[str, int], user: str, outbox: bool, turn_id: str
    ) -> Turn:
        control = turn_id.startswith("c")
        conversation.given[control] += 1
        assert turn_id == f"{'c' * control}{conversation.given[control]}"
        band = keys.band(body[1])
        if user and self.model.unfinished_of(user) >= SETTINGS.user_soft_limit:
            band = "n" if band == "h" else "l"
        turn = Turn(conversation.name, turn_id, band, body[1], user, outbox, texts=[body[0]])
        self.model.conversations[conversation.name] = conversation
        conversation.turns.append(turn)
        conversation.ids[idem], conversation.parts[idem] = (turn_id, body), (0, -1)
        if control:
            turn.put(SHARD.stream("command", "h"), 0)
        return turn

    def _place(self, conversation: Conversation, turn: Turn) -> None:
        if conversation.running:
            turn.where = "waiting"
            conversation.waiting.append(turn)
        else:
            self.model.run(conversation, turn)

    @precondition(lambda self: self.focus != "work" and any(t.where in ("waiting", "held") for t in self.model.turns()))
    @rule(name=name, which=which, version=st.integers(0, 3))
    def edit(self, name: str, which: int, version: int) -> None:
        # Mostly one that is not too late, and the newest rather than the first.
        there = [(c, key) for c in self.model.conversations.values() for key in c.ids]
        early = [(c, key) for c, key in there if c.turn_of(key).where in ("waiting", "held")]
        found = early if which < 9 else [(c, key) for c, key in there if c.name == name]
        if not found:
            return
        conversation, idem = found[-1 - which % len(found)]
        name, turn = conversation.name, conversation.turn_of(idem)
        envelope = Envelope(
            conversation=name, payload={"text": f"edit{version}"}, priority=turn.priority, reply_to="front"
        )
        got = self.now(
            edit_message(self.buses[1], envelope, idempotency=idem, version=version, principal=turn.user)
        )  # fmt: skip
        part, newest = conversation.parts[idem]
        late = {"done": "DONE", "waiting": "EDITED", "held": "EDITED"}.get(turn.where, "RUNNING")
        assert (got.outcome, got.turn) == (late, turn.id)
        if late == "EDITED" and version > newest:
            turn.texts[part], conversation.parts[idem] = f"edit{version}", (part, version)
        else:
            self.nothing_happens = True
        self.check()

    @precondition(lambda self: self.focus != "work" and self.model.conversations and self.notified < 3)
    @rule(name=name, key=st.integers(0, 1))
    def notify(self, name: str, key: int) -> None:
        conversation = self.model.conversations.get(name)
        if conversation is None:
            return
        self.notified += 1
        got = self.now(notify(self.buses[0], name, "news", idempotency=str(key), front="front"))
        idem = f"notice:{key}"
        assert got == ("DUP" if idem in conversation.notices else "OK")
        if got == "OK":
            conversation.notices.add(idem)
            conversation.history = min(conversation.history + 1, SETTINGS.assistant_history_limit)
            self.model.outbox.append((name, ""))
        else:
            self.nothing_happens = True
        self.check()

    # ── taking ──────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.to_take())
    @rule(
        process=process,
        free=st.integers(1, 4),
        last_ok=st.booleans(),
        start=st.integers(0, 2),
        claim=st.sampled_from((0, 1, 1)),
    )
    def take(self, process: int, free: int, last_ok: bool, start: int, claim: int) -> None:
        bus = self.buses[process]
        demands = [Demand(role, free, last_ok) for role in ROLES]
        expected = self._due_to(bus, demands, start, bool(claim))
        taken = self.now(take(bus, SHARD, demands, start, bool(claim)))
        assert [(d.stream, d.id, d.count, d.previous) for d in taken] == expected
        for delivery in taken:
            self._taken(bus, delivery)
        self.seen = [*reversed(taken), *self.seen]
        self.check()

    def to_take(self) -> bool:
        waits = any(t.where == "entry" and (t.expired or not t.holder) for t in self.model.turns())
        return waits or "" in self.model.forged.values()

    def _due_to(self, bus: Bus, demands: Sequence[Demand], start: int, claim: bool) -> list[tuple[str, str, int, str]]:
        """What a take brings for ``demands``: of entries on their last delivery, one at most for all of them."""
        found: list[tuple[str, str, int, str]] = []
        last = True
        for demand in demands:
            free = demand.free
            for stream in streams_of(bus, SHARD, demand.role, start) if claim else ():
                for entry, (holder, count) in self.shown.pending(stream).items():
                    turn, is_last = self._turn_at(stream, entry), count + 1 == SETTINGS.max_deliveries
                    if turn and turn.expired and free and (not is_last or (last and demand.last_ok)):
                        found.append((stream, entry, count + 1, holder))
                        free, last = free - 1, last and not is_last
            for stream in streams_of(bus, SHARD, demand.role, start):
                held = self.shown.pending(stream)
                new = [entry for entry, _ in self.shown.entries(stream) if entry not in held][:free]
                found += [(stream, entry, 1, "") for entry in new]
                free -= len(new)
        return found

    def _taken(self, bus: Bus, delivery: Delivery) -> None:
        if (delivery.stream, delivery.id) in self.model.forged:
            self.model.forged[delivery.stream, delivery.id] = bus.process
            return
        turn = self._turn_at(delivery.stream, delivery.id)
        assert turn is not None
        assert (delivery.conversation, delivery.turn, delivery.hop) == (turn.conversation, turn.id, turn.hop)
        assert delivery.envelope is not None
        assert delivery.envelope.text == turn.text
        turn.holder, turn.count, turn.expired = bus.process, delivery.count, False

    def _turn_at(self, stream: str, entry: str) -> Turn | None:
        return next(
            (t for t in self.model.turns() if t.where == "entry" and (t.stream, t.entry) == (stream, entry)), None
        )

    # ── what a holder does, or one that was a holder ────────────────────────────────────────────

    def _settle(
        self, which: int, verb: Callable[[Bus, Delivery], Coroutine[Any, Any, str]]
    ) -> tuple[Delivery, Turn] | None:
        """Let a process settle a delivery; checks the verdict, and returns whose turn it was if that was right."""
        delivery, bus = self._pick(which)
        turn, forged = self._turn_at(delivery.stream, delivery.id), (delivery.stream, delivery.id)
        self.taken = []
        verdict = self.now(verb(bus, delivery))
        if turn is not None and turn.holder == bus.process:
            assert verdict == "OK"
            return delivery, turn
        assert not self.taken, "a step that was refused took something"
        if self.model.forged.get(forged) == bus.process:
            assert verdict == "STALE"
            del self.model.forged[forged]
            return None
        assert verdict == "FENCED"
        self.nothing_happens = True
        return None

    def _supply(self, takes: int, *roles: str) -> Supply | None:
        """A settling step that takes along for ``takes`` slots of each of ``roles``."""
        order = Order([Demand(role, takes) for role in roles])
        return (lambda: Refill(order, self.taken.extend)) if takes else None

    def _took(self, bus: Bus, takes: int, *roles: str) -> None:
        """What a step took along is what TAKE would have brought right after it."""
        waiting = [turn for turn in self.model.turns() if turn.where == "entry" and not turn.holder]
        for role in roles:
            streams = streams_of(bus, SHARD, role)
            got = [delivery for delivery in self.taken if delivery.role == role]
            there = sum(turn.stream in streams for turn in waiting)
            there += sum(stream in streams and not holder for (stream, _), holder in self.model.forged.items())
            assert len(got) == min(takes, there), f"{len(got)} entries of {role} came along, of {there}"
            ranks = [streams.index(delivery.stream) for delivery in got]
            assert ranks == sorted(ranks), "a lower band came first"
        for delivery in self.taken:
            turn = next((t for t in waiting if (t.conversation, t.id) == (delivery.conversation, delivery.turn)), None)
            if turn is not None and (delivery.stream, delivery.id) not in self.model.forged:
                assert (turn.stream, turn.hop, delivery.count) == (delivery.stream, delivery.hop, 1)
                assert delivery.received
                turn.entry = delivery.id
            self._taken(bus, delivery)
        self.seen = [*reversed(self.taken), *self.seen]

    def held(self) -> list[Delivery]:
        return [delivery for delivery in self.seen if self._held_by(delivery)]

    def _bus_of(self, turn: Turn) -> Bus:
        return self.buses[PROCESSES.index(turn.holder)]

    def _pick(self, which: int) -> tuple[Delivery, Bus]:
        held = self.held()
        if held and which < 9:
            delivery = held[which % len(held)]
            return delivery, self.buses[PROCESSES.index(self._held_by(delivery))]
        return self.seen[which % len(self.seen)], self.buses[which % 2]

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which)
    def emit(self, which: int) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            return await emit(bus, delivery, 0, "x")

        self._settle(which, verb)
        self.check()

    @precondition(lambda self: self.held())
    @rule(which=which, to=st.sampled_from(DESTINATIONS), prefers=st.sampled_from(("", "de")), takes=st.integers(0, 2))
    def hop(self, which: int, to: str, prefers: str, takes: int) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            assert delivery.envelope is not None
            supply = self._supply(takes, "echo", "manager")
            return await hop(bus, delivery, delivery.envelope.via(to), records(), {"lang": prefers}, supply)

        if settled := self._settle(which, verb):
            delivery, turn = settled
            self._prefer(turn, prefers)
            role, _, addressed = to.partition("@")
            direct = addressed in self.model.alive
            stream = SHARD.direct(role, addressed) if direct else SHARD.stream(role, self._band(delivery, turn))
            bus = self._bus_of(turn)
            turn.put(stream, delivery.hop + 1)
            self._took(bus, takes, "echo", "manager")
        self.check()

    def _band(self, delivery: Delivery, turn: Turn) -> str:
        """The band that its user's limit gave it goes with it, as long as it travels in bands."""
        if turn.control or delivery.stream[-2:] not in (":h", ":n", ":l"):
            return keys.band(turn.priority)
        asked, given = keys.BANDS.index(keys.band(turn.priority)), keys.BANDS.index(delivery.stream[-1])
        return keys.BANDS[max(asked, given)]

    def _prefer(self, turn: Turn, language: str) -> None:
        preferences = self.model.conversations[turn.conversation].preferences
        preferences.pop("lang", None)
        preferences.update({"lang": language} if language else {})

    @precondition(lambda self: self.held())
    @rule(which=which, forget=st.sampled_from((0, 0, 1)), prefers=st.sampled_from(("", "de")), takes=st.integers(0, 2))
    def complete(self, which: int, forget: int, prefers: str, takes: int) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            assert delivery.envelope is not None
            answer, changes = delivery.envelope.reply("y"), {"lang": prefers}
            return await complete(
                bus, delivery, answer, records(), history=[b"h"], preferences=changes, forget=bool(forget),
                supply=self._supply(takes, "manager"),
            )  # fmt: skip

        if settled := self._settle(which, verb):
            _, turn = settled
            conversation = self.model.conversations[turn.conversation]
            conversation.history = 0 if forget else min(conversation.history + 1, SETTINGS.assistant_history_limit)
            self._prefer(turn, prefers)
            bus = self._bus_of(turn)
            self.model.end(turn, "final")
            self._took(bus, takes, "manager")
        self.check()

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which)
    def bury(self, which: int) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            return await bury(bus, delivery, "why", "sorry", records())

        if settled := self._settle(which, verb):
            self.model.dead += 1
            self.model.end(settled[1], "error")
        self.check()

    @precondition(lambda self: self.held())
    @rule(which=which, seconds=st.sampled_from((0, 1000)))
    def defer(self, which: int, seconds: int) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            assert delivery.envelope is not None
            return await defer(bus, delivery, seconds, delivery.envelope, "busy", records())

        delivery, bus = self._pick(which)
        if delivery.control:
            assert self.now(verb(bus, delivery)) == "CONTROL"
            self.nothing_happens = True
        elif settled := self._settle(which, verb):
            delivery, turn = settled
            turn.where, turn.holder, turn.due = "deferred", "", seconds == 0
            turn.wake = (SHARD.stream(delivery.role, self._band(delivery, turn)), delivery.hop)
        self.check()

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which, key=st.sampled_from("123"))
    def record(self, which: int, key: str) -> None:
        async def verb(bus: Bus, delivery: Delivery) -> str:
            return await record(bus, delivery, [(key, Step("once", "x"))], records())

        if settled := self._settle(which, verb):
            delivery, turn = settled
            turn.record(delivery.hop, key)
        self.check()

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which)
    def call(self, which: int) -> None:
        delivery, _bus = self._pick(which)
        turn = self._turn_at(delivery.stream, delivery.id)
        if delivery.control or delivery.turn.count(".") > 1 or (turn is not None and len(turn.calls) > 2):
            return
        key = f"9{len(turn.calls)}" if turn is not None else "99"
        envelope = Envelope(conversation=delivery.conversation, payload={"text": "call"}, role="echo")

        async def verb(bus: Bus, delivery: Delivery) -> str:
            new = [NewStep(key, Step("call", "echo"), envelope=envelope)]
            return (await begin(bus, delivery, new, user="", instance="i"))[0]

        if settled := self._settle(which, verb):
            delivery, turn = settled
            turn.record(delivery.hop, key)
            stream = SHARD.stream("echo", next_band(delivery, envelope))
            call = Turn(
                turn.conversation, f"{turn.id}.{len(turn.calls) + 1}", stream, 50, "", False, texts=["call"],
                caller=turn, key=key,
            )  # fmt: skip
            call.put(stream, 0)
            turn.calls.append(call)
            self.model.conversations[turn.conversation].turns.append(call)
        self.check()

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which)
    def suspend(self, which: int) -> None:
        delivery, _bus = self._pick(which)
        turn = self._turn_at(delivery.stream, delivery.id)
        if delivery.control:
            return
        made = [call.key for call in turn.calls] if turn is not None and turn.journal_hop == delivery.hop else []
        keys_of = [key for key in made if turn is not None and key in turn.steps] or ["none"]
        ready = turn is not None and set(keys_of) <= turn.results
        words: list[str] = []

        async def verb(bus: Bus, delivery: Delivery) -> str:
            verdict, _ = await suspend(bus, delivery, Awaited([keys_of], 0, False, "calls"), records())
            words.append(verdict)
            return "OK" if verdict == "READY" else verdict

        if settled := self._settle(which, verb):
            delivery, turn = settled
            assert words == ["READY" if ready else "OK"]
            if not ready:
                turn.where, turn.holder, turn.due, turn.waits = "suspended", "", False, set(keys_of)
                turn.wake = (SHARD.stream(delivery.role, self._band(delivery, turn)), delivery.hop)
        self.check()

    @precondition(lambda self: self.focus != "fronts" and self.held())
    @rule(which=which)
    def hand_back(self, which: int) -> None:
        delivery, bus = self._pick(which)
        turn, forged = self._turn_at(delivery.stream, delivery.id), (delivery.stream, delivery.id)
        verdict = self.now(hand_back(bus, delivery))
        if self.model.forged.get(forged) == bus.process:
            del self.model.forged[forged]
            self.model.forged[delivery.stream, self._newest(delivery.stream)] = ""
        elif turn is None or turn.holder != bus.process:
            assert verdict == "FENCED"
            self.nothing_happens = True
        elif turn.count == 1:
            turn.put(turn.stream, turn.hop)
        else:
            turn.count, turn.expired = turn.count - 1, True
        self.check()

    def _newest(self, stream: str) -> str:
        found: str = self.now(self.server.call("XREVRANGE", stream, "+", "-", "COUNT", 1))[0][0].decode()
        return found

    @precondition(
        lambda self: self.focus != "fronts" and (self.held() or (self.model.conversations and not self.model.alive))
    )
    @rule(process=process)
    def renew(self, process: int) -> None:
        bus = self.buses[process]
        held = list({(d.stream, d.id): d for d in self.seen[:20]}.values())
        lost = self.now(renew(bus, SHARD, held))
        self.model.alive.add(bus.process)
        kept = [d for d in held if self._held_by(d) == bus.process]
        assert lost == [d for d in held if d not in kept]
        for delivery in kept:
            if turn := self._turn_at(delivery.stream, delivery.id):
                turn.expired = False
        self.check()

    def _held_by(self, delivery: Delivery) -> str:
        turn = self._turn_at(delivery.stream, delivery.id)
        return turn.holder if turn else self.model.forged.get((delivery.stream, delivery.id), "")

    # ── what befalls ────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.focus != "fronts" and any(turn.holder for turn in self.model.turns()))
    @rule(process=process)
    def the_leases_of_a_process_run_out(self, process: int) -> None:
        for turn in [turn for turn in self.model.turns() if turn.holder == PROCESSES[process]]:
            lease = (turn.stream, keys.GROUP, turn.holder, 0, turn.entry, "IDLE", 10_000_000, "JUSTID")
            self.now(self.server.call("XCLAIM", *lease))
            turn.expired = True
        self.check()

    @precondition(
        lambda self: (
            self.focus != "fronts"
            and (len(self.model.alive) == 2 or any("@" in turn.stream for turn in self.model.turns()))
        )
    )
    @rule(process=process, silent=st.sampled_from((1, 0)))
    def a_process_is_cleared_up_after(self, process: int, silent: int) -> None:
        gone, addressed = PROCESSES[process], SHARD.direct("echo", PROCESSES[process])
        if silent:
            self.now(self.server.call("DEL", SHARD.alive(gone)))
            self.model.alive.discard(gone)
        found = [turn for turn in self.model.turns() if turn.where == "entry" and turn.stream == addressed]
        moved = [] if gone in self.model.alive else found
        assert self.now(rescue_direct(self.buses[0], SHARD, ROLES, gone)) == len(moved)
        for turn in moved:
            turn.put(SHARD.stream("echo", keys.band(turn.priority)), turn.hop)
        self.check()

    @precondition(lambda self: self.focus != "fronts" and any(c.running for c in self.model.conversations.values()))
    @rule(name=name, role=st.sampled_from(ROLES))
    def a_second_entry_of_a_turn_appears(self, name: str, role: str) -> None:
        conversation = self.model.conversations.get(name)
        if conversation is None or conversation.running is None:
            return
        envelope = encode(Envelope(conversation=name, payload={"text": "forged"}))
        fields = ("c", name, "t", conversation.running.id, "h", 0, "e", envelope)
        stream = SHARD.stream(role, "h")
        entry = self.now(self.server.call("XADD", stream, "*", *fields)).decode()
        self.model.forged[stream, entry] = ""
        self.check()

    # ── from outside ────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.model.active()) > 1)
    @rule(which=which, name=name, kind=st.sampled_from(("cancelled", "error")))
    def cancel(self, which: int, name: str, kind: str) -> None:
        conversation = self.model.conversations.get(name)
        if conversation is None:
            return
        turn = conversation.turns[-1 - which % len(conversation.turns)]
        ended = self.now(cancel_turn(self.buses[0], name, turn.id, kind=kind))
        assert ended == (turn.where != "done" and not turn.control)
        if ended:
            self.model.end(turn, kind)
        else:
            self.nothing_happens = True
        self.check()

    @precondition(lambda self: len(self.model.active()) > 1)
    @rule(name=name, forget=st.booleans())
    def stop(self, name: str, forget: bool) -> None:
        conversation = self.model.conversations.get(name)
        if conversation is None:
            return
        running, waiting = conversation.running, conversation.waiting
        assert self.now(stop_conversation(self.buses[0], name, forget=forget)) == bool(running) + len(waiting)
        conversation.running, conversation.waiting = None, []
        for turn in [*([running] if running else ()), *waiting]:
            self.model.finish(turn, "cancelled")
        conversation.history = 0 if forget else conversation.history
        if forget:
            self._unscheduled(name)
        self.check()

    # ── schedules ───────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.model.conversations and len(self.model.schedules) < 3)
    @rule(which=which)
    def schedule(self, which: int) -> None:
        conversation = list(self.model.conversations.values())[which % len(self.model.conversations)]
        made = self.now(
            schedule(self.buses[0], conversation.name, "x", every=timedelta(hours=1), front="http", user="s")
        )
        self.model.schedules[made.id] = (conversation.name, None)
        conversation.notices.add(f"schedule:{made.id}")
        self.check()

    @precondition(lambda self: self.model.schedules)
    @rule(which=which, process=process, due=st.sampled_from((True, True, True, False)))
    def fire(self, which: int, process: int, due: bool) -> None:
        chosen = list(self.model.schedules)[which % len(self.model.schedules)]
        name, last = self.model.schedules[chosen]
        conversation, member = self.model.conversations[name], f"{name}\x1f{chosen}"
        now = round(self.now(server_ms(self.server)))
        at = now - 1 - which if due else now + 1_000_000
        for key in (SHARD.planned, SHARD.deferred):
            self.now(self.server.call("ZADD", key, "XX", at, member))
        busy = last is not None and last.where != "done"
        outcome = self._admission(conversation, f"{member}:{at}", ("x", 50), "s", False, None, None)
        verdict = self.now(fire(self.buses[process], member, now))
        assert verdict == ("EARLY" if not due else "LATER" if busy or outcome in ("FULL", "BUSY") else "BEGUN")
        if verdict == "BEGUN":
            turn = self._accept(
                conversation, f"schedule:{chosen}:{at}", ("x", 50), "s", False, str(conversation.given[False] + 1)
            )
            turn.scheduled = True
            self._place(conversation, turn)
            self.model.schedules[chosen] = (name, turn)
            assert self.now(fire(self.buses[1 - process], member, now)) == "EARLY"
        self.check()

    @precondition(lambda self: self.model.schedules)
    @rule(which=which)
    def unschedule(self, which: int) -> None:
        chosen = list(self.model.schedules)[which % len(self.model.schedules)]
        name, _ = self.model.schedules.pop(chosen)
        assert self.now(unschedule(self.buses[0], name, chosen)) == 1
        assert self.now(unschedule(self.buses[0], name, chosen)) == 0
        self.check()

    def _unscheduled(self, name: str) -> None:
        self.model.schedules = {one: what for one, what in self.model.schedules.items() if what[0] != name}

    @precondition(lambda self: any(turn.asleep for turn in self.model.turns()))
    @rule(which=which, early=st.booleans())
    def promote(self, which: int, early: bool) -> None:
        deferred = [turn for turn in self.model.turns() if turn.asleep]
        turn = deferred[which % len(deferred)]
        call = turn.id if turn.caller else ""
        verdict = self.now(promote(self.buses[1], SHARD, turn.conversation, call, early=early))
        assert verdict == ("OK" if turn.due or (early and turn.where != "suspended") else "EARLY")
        if verdict == "OK":
            turn.put(*turn.wake)
        self.check()

    @precondition(lambda self: self.held() or any(turn.asleep for turn in self.model.turns()))
    @rule(name=name)
    def look_for_trouble(self, name: str) -> None:
        conversation = self.model.conversations.get(name)
        busy = conversation is not None and conversation.running is not None
        assert self.now(audit_one(self.buses[1], SHARD, name)) == ("OK" if busy else "IDLE")
        if not busy:
            assert self.now(promote(self.buses[1], SHARD, name)) == "GONE"
            self.nothing_happens = True
        self.check()


def machine_on(
    loop: asyncio.AbstractEventLoop, server: RedisServer, spoken_to: Server, focus: Focus = "all"
) -> type[BusMachine]:
    """The machine whose processes speak to ``spoken_to``, which is ``server`` or something in front of it."""
    own = {"loop": loop, "server": server, "spoken_to": spoken_to, "focus": focus}
    return type("OnServer", (BusMachine,), own)
