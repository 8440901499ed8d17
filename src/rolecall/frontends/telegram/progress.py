"""Progress of turns as their users see it: a placeholder, the place in the queue, "typing", and the growing text.

Losing any of it does no harm, since the deliverer writes the answer. Once the deliverer starts on a turn, nothing is
written here for it, so an answer is never overwritten. Answers come first: nothing is written here while one of the
same conversation waits to be delivered, and the place in the queue only when nothing else is to be written in the chat.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from telegram.error import TelegramError

from rolecall.background import BackgroundTasks
from rolecall.bus.admission import places
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import active_conversations, running_turn
from rolecall.bus.events import AnswerText, Event, follow
from rolecall.bus.outbox import reply
from rolecall.bus.turn import snapshot
from rolecall.bus.wakeups import Wakeups
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.telegram.bot import explain
from rolecall.frontends.telegram.buttons import stop_keyboard
from rolecall.frontends.telegram.chats import Chats, Keyboard, Unreachable
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import render_growing
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import SendOutcome
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.texts import say, waiting_text

logger = logging.getLogger(__name__)
TYPING_SECONDS = 4.0
"""Telegram shows "typing" for five seconds."""
TYPING_AFTER = 0.5
"""The placeholder is enough at first; requests that other users wait for go before."""
DRAFT_SECONDS = 20.0
"""Telegram shows a draft for thirty seconds."""
THINKING_AFTER = 1.5
"""How long a turn that waited may run before "Thinking…" replaces its place: often its answer comes sooner."""
LOOK_SECONDS = 0.1
MAX_ENDED = 4096
SHOWN = "shown"
"""The kind of outbox entries by which the process that receives hands a turn over to the one that shows it."""
RING = "ring"
"""Stands for a turn: the one message of a conversation that says that an answer is ready."""


class ProgressDisplay:
    """Shows the progress of turns.

    Turns are shown by the process that delivers to their conversation, as ``holding`` says: what another one receives
    it hands over. Placeholders are sent and texts streamed only while ``undelivered`` says that no answer of the
    conversation waits. With ``drafts``, private chats see the growing text as a draft instead of a placeholder.
    """

    def __init__(
        self,
        bus: Bus,
        wakeups: Wakeups,
        chats: Chats,
        turn_messages: TurnMessages,
        *,
        front: str = "telegram",
        holding: Callable[[str], bool] = lambda conversation: True,
        undelivered: Callable[[str], bool] = lambda conversation: False,
        drafts: bool = False,
    ) -> None:
        self.bus, self.wakeups, self.chats, self.turn_messages = bus, wakeups, chats, turn_messages
        self.front, self.holding, self.undelivered, self.drafts = front, holding, undelivered, drafts
        self._turns: dict[tuple[str, str], TurnView] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._background = BackgroundTasks()
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def show(self, received: Received, address: Address, message_id: int, language: str | None) -> None:
        """Start to show the turn's progress, or hand that over to the process that delivers to the conversation;
        returns at once. Idempotent: a call for the same turn, such as for a message that joined it, changes nothing.
        Raises ServerError."""
        if message_id:
            self.chats.note(address, message_id)
        if received.refused or not received.turn:
            return
        await self.turn_messages.describe(received.conversation, received.turn, language, received.at, message_id)
        if not self.holding(received.conversation):
            return await self._hand_over(received, message_id, language)
        self._show_here(received, address, message_id, language)

    async def show_handed_over(self, address: Address, payload: Mapping[str, Any]) -> None:
        """Show a turn that another process has received and handed over."""
        message_id, language = int(payload["message"]), payload["language"]
        received = Received(
            address.conversation, payload["turn"], outcome=payload["outcome"], place=payload["place"], at=payload["at"],
            before=payload["before"],
        )  # fmt: skip
        if message_id:
            self.chats.note(address, message_id)
        self._show_here(received, address, message_id, language)

    async def _hand_over(self, received: Received, message_id: int, language: str | None) -> None:
        await reply(
            self.bus, self.front, received.conversation, "", idempotency=f"{received.turn}:{message_id}", kind=SHOWN,
            turn=received.turn, outcome=received.outcome, place=received.place, at=received.at, before=received.before,
            message=message_id, language=language,
        )  # fmt: skip

    def _show_here(self, received: Received, address: Address, message_id: int, language: str | None) -> None:
        view = TurnView(received, address, message_id, language, received.place)
        if view.key in self._turns or view.key in self._ended:
            return
        self._turns[view.key] = view
        name = f"rolecall telegram turn {received.short_id}"
        self._tasks[view.key] = asyncio.create_task(self._watch(view), name=name)

    def end(self, conversation: str, turn: str) -> str:
        """Stop writing for this turn, because its answer is there; returns the text that its user has seen. A request
        in progress still comes before whatever is written next, by the order of the chat."""
        key = (conversation, turn)
        self._ended[key] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        view = self._turns.get(key)
        if view is None:
            return ""
        view.over = True
        view.changed.set()
        return view.answer.text

    async def ended(self, conversation: str, turn: str) -> None:
        """Return once nothing is being written for a turn that ``end`` was called for."""
        view = self._turns.get((conversation, turn))
        if view is not None:
            await view.resting.wait()

    @property
    def showing(self) -> int:
        """How many turns are being shown."""
        return len(self._turns)

    async def resume(self) -> int:
        """Show the unfinished turns of this process's conversations again, such as after a restart; returns how
        many."""
        count = 0
        for conversation in await active_conversations(self.bus):
            address = Address.of(conversation)
            if address is not None and address.front == self.front and self.holding(conversation):
                count += await self._resume(conversation, address)
        await self.turn_messages.orphans.resume(self.front, self.holding)
        return count

    async def aclose(self) -> None:
        """Stop. Placeholders stay; the answers replace them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._background.drain(0)

    async def _resume(self, conversation: str, address: Address) -> int:
        current = await running_turn(self.bus, conversation)
        waiting = {current: 0} if current else {}
        waiting |= await places(self.bus, conversation)
        for turn, place in waiting.items():
            record = await self.turn_messages.of(conversation, turn)
            received = Received(conversation, turn, outcome="DUP", place=place, at=record.at)
            if record.question:
                self.chats.note(address, record.question)
            self._show_here(received, address, record.question, record.language)
        return len(waiting)

    # One turn

    async def _watch(self, view: TurnView) -> None:
        try:
            if view.received.outcome in ("RUN", "WAIT") or await self._unfinished(view):
                await self._show(view)
        except* ServerError as errors:
            logger.info("%s: progress is no longer shown: %s", view.key[0], errors.exceptions[0])
        except* TelegramError as errors:
            logger.warning("%s: progress is no longer shown: %s", view.key[0], explain(errors.exceptions[0]))
        finally:
            view.resting.set()
            del self._turns[view.key], self._tasks[view.key]

    async def _show(self, view: TurnView) -> None:
        view.painted = view.state
        begun = await self._begin(view)
        # Not before: the answers that came first are delivered now, and their rings recorded.
        self._start(self._delete_rings(view.address, view.key[1]), "rings")
        if not begun:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._paint(view), name="rolecall telegram paint")
            try:
                await self._follow(view)
            finally:  # not cancelled: a cancelled request may still be executed, after the answer
                view.over = True
                view.changed.set()

    async def _begin(self, view: TurnView) -> bool:
        """Show the placeholder or the draft; False if the bot cannot write to the chat."""
        view.draft = self.drafts and view.address.private and await self._draft(view)
        return view.draft or await self._create_placeholder(view)

    async def _unfinished(self, view: TurnView) -> bool:
        """Whether the turn, which may be an old one, is unfinished."""
        return (await snapshot(self.bus, *view.key)).state.unfinished

    async def _create_placeholder(self, view: TurnView) -> bool:
        """Create the placeholder, unless the answer is there before; False if the bot cannot write to the chat. In a
        private chat it quotes the question if other messages stand between."""
        conversation, turn = view.key
        apart = not view.address.private or view.place or self.chats.newest(view.address) > view.message_id
        while not view.over and self.holding(conversation):
            if self.undelivered(conversation) or self._is_behind(view):  # such as what a predecessor left
                await asyncio.sleep(LOOK_SECONDS)
                continue
            created = await self.turn_messages.create(
                view.address, turn, view.parts[0], after=view.message_id, keyboard=view.keyboard,
                reply_to=view.message_id if apart and view.message_id else None,
            )  # fmt: skip
            if not isinstance(created, Unreachable):
                view.messages.append(created)
                return True
            if not created.failing:
                logger.info("%s: no placeholder: %s", conversation, created.reason)
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return False

    def _is_behind(self, view: TurnView) -> bool:
        """Whether a message of the same conversation that came before has no placeholder yet."""
        before = takewhile(lambda one: one is not view, self._turns.values())
        return view.received.outcome != "RUN" and any(
            one.key[0] == view.key[0] and not (one.messages or one.draft or one.over) for one in before
        )

    async def _follow(self, view: TurnView) -> None:
        conversation, turn = view.key
        async for event in follow(self.bus, self.wakeups, conversation, turn, view.received.before):
            self._apply(view, event)
            if event.last:
                return
            if event.kind == "started":
                await self._move_up(conversation)

    def _apply(self, view: TurnView, event: Event) -> None:
        if event.kind in ("accepted", "queued"):
            view.move(event.place)
            view.delay = waiting_text(view.language, event.payload) or ""
        elif event.kind == "started":
            view.move(0)
            view.answer.restart()
        elif event.kind == "delta":
            view.answer.apply(event)
        view.changed.set()

    async def _move_up(self, conversation: str) -> None:
        """Update the places of the turns that wait in ``conversation``."""
        waiting = [one for one in self._turns.values() if one.key[0] == conversation and one.place]
        by_turn = await places(self.bus, conversation) if waiting else {}
        for view in waiting:
            view.move(by_turn.get(view.key[1], 0))
            view.changed.set()

    async def _paint(self, view: TurnView) -> None:
        """Keep "typing" and the messages up to date."""
        typing, drafted = time.monotonic() + TYPING_AFTER, 0.0
        try:
            while not view.over:
                view.changed.clear()
                now, pause = time.monotonic(), 0.0
                if not view.place and now >= typing and self.holding(view.key[0]):
                    await self.chats.typing(view.address)
                    typing = now + TYPING_SECONDS
                redraw = view.draft and now - drafted > DRAFT_SECONDS
                if (view.stale or redraw) and self.holding(view.key[0]):
                    pause = self._pause(view)
                    if not pause:
                        drafted = now
                        if not await self._update(view):
                            return
                        continue
                longest = TYPING_SECONDS if view.place else max(typing - now, TYPING_AFTER)
                await self._wait(view, pause, longest)
        finally:
            view.resting.set()

    async def _wait(self, view: TurnView, pause: float, longest: float) -> None:
        """Wait until the view may be painted; if it is up to date, until something changes."""
        if pause:
            await asyncio.sleep(min(pause, longest))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await view.changed.wait()

    def _pause(self, view: TurnView) -> float:
        """Seconds until the view may be painted; 0 for now."""
        if self.undelivered(view.key[0]):
            return LOOK_SECONDS
        stalled = self.chats.stalled(view.address)
        if stalled or view.answer.text or view.delay:
            return stalled
        others = [one for one in self._turns.values() if one is not view and one.address.chat == view.address.chat]
        if any(one.answer.text and not one.over for one in others):
            return LOOK_SECONDS
        if view.place:
            return self.chats.place_stalled(view.address)
        return max(0.0, view.moved + THINKING_AFTER - time.monotonic())

    async def _update(self, view: TurnView) -> bool:
        """Paint the view; False if its message can no longer be edited."""
        state = view.state
        if view.place and not view.answer.text:
            self.chats.note_place(view.address)
        outcome = await self._write(view, view.parts)
        if outcome != "LATER":
            view.painted = state
        return outcome in ("OK", "DROPPED", "LATER", "FAILING")

    async def _write(self, view: TurnView, parts: list[TextPart]) -> SendOutcome:
        """Write the last message. Before that, messages that are full are finished and new ones begun, and those that
        a restarted answer does not need any more are deleted."""
        first = 1 if view.draft else 0
        while len(view.messages) > max(1, len(parts)) - first:
            message, name = view.messages.pop(), str(len(view.messages))
            if await self.chats.delete(view.address, message):  # else the deliverer deletes it
                await self.turn_messages.forget(view.address, view.key[1], message, name)
        while len(view.messages) + first < len(parts):
            outcome = await self._go_on(view, parts)
            if outcome != "OK":
                return outcome
        if view.draft:
            await self._draft(view)
            return "OK"
        return await self._edit(view, view.messages[-1], parts[-1], view.keyboard)

    async def _go_on(self, view: TurnView, parts: list[TextPart]) -> SendOutcome:
        """Begin the next message, once the one before it is full."""
        number = len(view.messages)
        if number and not view.draft:
            outcome = await self._edit(view, view.messages[-1], parts[number - 1], None)
            if outcome != "OK":
                return outcome
        if not self._is_wanted(view):
            return "DROPPED"
        before = (view.messages or [view.message_id])[-1]
        apart = not view.address.private or self.chats.newest(view.address) > before
        created = await self.turn_messages.create(
            view.address, view.key[1], parts[number], name=str(number), after=before,
            keyboard=None if view.draft else view.keyboard, reply_to=before if apart else None,
        )  # fmt: skip
        if isinstance(created, Unreachable):
            return "FAILING" if created.failing else "BLOCKED"
        view.messages.append(created)
        return "OK"

    async def _edit(self, view: TurnView, message: int, part: TextPart, keyboard: Keyboard | None) -> SendOutcome:
        return await self.chats.edit(
            view.address, message, part, keyboard, wanted=lambda: self._is_wanted(view), partial=True
        )

    def _is_wanted(self, view: TurnView) -> bool:
        return not view.over and self.holding(view.key[0])

    async def _draft(self, view: TurnView) -> bool:
        """Show a draft; clients show an empty one as "Thinking…"."""
        part = view.parts[-1] if view.answer.text or view.place else TextPart("")
        draft_id = int.from_bytes(view.key[1].encode()[-6:], "big") or 1
        return await self.chats.draft(view.address, draft_id, part, lambda: self._is_wanted(view))

    # Around turns

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        self._background.start(work, f"rolecall telegram {name}")

    async def _delete_rings(self, address: Address, turn: str) -> None:
        """Delete the messages that say that an answer before that of ``turn`` is ready: its user has seen it."""
        with suppress(ServerError):
            for name, message in (await self.turn_messages.of(address.conversation, RING)).messages.items():
                if name != turn:
                    await self.chats.delete(address, message)
                    await self.turn_messages.forget(address, RING, message, name)


@dataclass
class TurnView:
    """One unfinished turn: its state, and what its user sees of it."""

    received: Received
    address: Address
    message_id: int
    language: str | None
    place: int = 0
    moved: float = field(default_factory=time.monotonic)
    """When ``place`` changed, in monotonic seconds."""
    answer: AnswerText = field(default_factory=AnswerText)
    delay: str = ""
    """Why the turn waits, for its user, if the model is the reason."""
    painted: tuple[int, int, str] = (0, 0, "")
    """The state that the messages show."""
    messages: list[int] = field(default_factory=list)
    """The messages that show the turn; all but the last are full."""
    over: bool = False
    draft: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    resting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once nothing more is written."""

    @property
    def key(self) -> tuple[str, str]:
        return self.received.conversation, self.received.turn

    @property
    def state(self) -> tuple[int, int, str]:
        """What the text depends on."""
        return self.place, len(self.answer.text), self.delay

    @property
    def stale(self) -> bool:
        """Whether the messages should change. Of the turns that wait, only the next one's place is updated. While a
        restarted answer has no text, the old text stays."""
        place, length, delay = self.painted
        if self.answer.text or self.delay != delay:
            return self.state != self.painted
        return not length and self.place != place and self.place <= 1

    @property
    def parts(self) -> list[TextPart]:
        """The messages that the turn should have now; at least one."""
        if self.answer.text and (parts := render_growing(self.answer.text)):
            return parts
        if self.delay:
            return [TextPart(self.delay)]
        key, values = ("place", {"place": self.place}) if self.place else ("thinking", {})
        return [TextPart(say(self.language, key, **values))]

    @property
    def keyboard(self) -> Keyboard:
        return stop_keyboard(self.received.turn, self.language)

    def move(self, place: int) -> None:
        """Note the place in the queue."""
        if place != self.place:
            self.place, self.moved = place, time.monotonic()
