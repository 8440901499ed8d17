"""Progress of turns as their users see it: a placeholder, the place in the queue, "typing", and the growing text.

Losing any of it does no harm, since the deliverer writes the answer. Once the deliverer starts on a turn, nothing is
written here for it, so an answer is never overwritten.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field

from telegram.error import TelegramError

from rolecall.background import BackgroundTasks
from rolecall.bus.admission import places
from rolecall.bus.bus import Bus
from rolecall.bus.conversation import active_conversations, running_turn
from rolecall.bus.events import AnswerText, Event, Wakeups, follow
from rolecall.bus.turn import snapshot
from rolecall.errors import ServerError
from rolecall.frontends.front import Received
from rolecall.frontends.telegram.bot import explain
from rolecall.frontends.telegram.buttons import stop_keyboard
from rolecall.frontends.telegram.chats import Chats, Keyboard, Unreachable
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import partial
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.placeholders import TurnMessages
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
TYPING_SECONDS = 4.0
"""Telegram shows "typing" for five seconds."""
TYPING_AFTER = 0.5
"""The placeholder is enough at first; requests that other users wait for go before."""
DRAFT_SECONDS = 20.0
"""Telegram shows a draft for thirty seconds."""
MAX_ENDED = 4096
RING = "ring"
"""Stands for a turn: the one message of a conversation that says that an answer is ready."""


class ProgressDisplay:
    """Shows the progress of turns.

    Texts are streamed only while ``holding`` says that this process is the one that delivers. With ``drafts``, private
    chats see the growing text as a draft instead of a placeholder.
    """

    def __init__(
        self,
        bus: Bus,
        wakeups: Wakeups,
        chats: Chats,
        turn_messages: TurnMessages,
        *,
        front: str = "telegram",
        holding: Callable[[], bool] = lambda: True,
        drafts: bool = False,
    ) -> None:
        self.bus, self.wakeups, self.chats, self.turn_messages = bus, wakeups, chats, turn_messages
        self.front, self.holding, self.drafts = front, holding, drafts
        self._turns: dict[tuple[str, str], TurnView] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._background = BackgroundTasks()
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def show(self, received: Received, address: Address, message_id: int, language: str | None) -> None:
        """Start to show the turn's progress; returns at once. Idempotent: a call for the same turn, such as for a
        message that joined it, changes nothing."""
        if message_id:
            self.chats.note(address, message_id)
        view = TurnView(received, address, message_id, language, received.place)
        if received.refused or not received.turn or view.key in self._turns or view.key in self._ended:
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

    @property
    def showing(self) -> int:
        """How many turns are being shown."""
        return len(self._turns)

    async def resume(self) -> int:
        """Show the unfinished turns again, such as after a restart; returns how many."""
        count = 0
        for conversation in await active_conversations(self.bus):
            address = Address.of(conversation)
            if address is not None and address.front == self.front:
                count += await self._resume(conversation, address)
        await self.turn_messages.orphans.resume(self.front)
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
            await self.show(received, address, 0, record.language)
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
            del self._turns[view.key], self._tasks[view.key]

    async def _show(self, view: TurnView) -> None:
        first = view.state
        view.draft = self.drafts and view.address.private and await self._draft(view)
        if not view.draft and not await self._create_placeholder(view):
            return
        await self.turn_messages.describe(*view.key, view.language, view.received.at)
        self._start(self._delete_ring(view.address), "ring")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._paint(view, first), name="rolecall telegram paint")
            try:
                await self._follow(view)
            finally:  # not cancelled: a cancelled request may still be executed, after the answer
                view.over = True
                view.changed.set()

    async def _unfinished(self, view: TurnView) -> bool:
        """Whether the turn, which may be an old one, is unfinished."""
        return (await snapshot(self.bus, *view.key)).state.unfinished

    async def _create_placeholder(self, view: TurnView) -> bool:
        """Create the placeholder; False if the bot cannot write to the chat."""
        conversation, turn = view.key
        created = await self.turn_messages.create(
            view.address, turn, view.text, after=view.message_id, keyboard=view.keyboard,
            reply_to=None if view.address.private else view.message_id or None,
        )  # fmt: skip
        if isinstance(created, Unreachable):
            logger.info("%s: no placeholder: %s", conversation, created.reason)
            return False
        view.message = created
        return True

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
            view.place = event.place
        elif event.kind == "started":
            view.place = 0
            view.answer.restart()
        elif event.kind == "delta":
            view.answer.apply(event)
        view.changed.set()

    async def _move_up(self, conversation: str) -> None:
        """Update the places of the turns that wait in ``conversation``."""
        waiting = [one for one in self._turns.values() if one.key[0] == conversation and one.place]
        by_turn = await places(self.bus, conversation) if waiting else {}
        for view in waiting:
            view.place = by_turn.get(view.key[1], 0)
            view.changed.set()

    async def _paint(self, view: TurnView, painted: tuple[int, int]) -> None:
        """Keep "typing" and the message up to date."""
        typing, drafted = time.monotonic() + TYPING_AFTER, 0.0
        while True:
            view.changed.clear()
            if view.over:
                return
            now = time.monotonic()
            if not view.place and now >= typing:
                await self.chats.typing(view.address)
                typing = now + TYPING_SECONDS
            stalled = 0.0
            if self._changed(view, painted) or (view.draft and now - drafted > DRAFT_SECONDS):
                stalled = self.chats.stalled(view.address)
                if not stalled:
                    painted, drafted = view.state, now
                    if not await self._update(view):
                        return
                    continue
            longest = TYPING_SECONDS if view.place else max(typing - now, TYPING_AFTER)
            await self._wait(view, stalled, longest)

    async def _wait(self, view: TurnView, stalled: float, longest: float) -> None:
        """Wait until the chat is free; if it is, until something changes."""
        if stalled:
            await asyncio.sleep(min(stalled, longest))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await view.changed.wait()

    def _changed(self, view: TurnView, painted: tuple[int, int]) -> bool:
        """Whether the text changed. While a restarted answer has no text, the old text stays."""
        length = len(view.answer.text)
        return view.state != painted and (length > 0 or painted[1] == 0) and self.holding()

    async def _update(self, view: TurnView) -> bool:
        """Update the message; False if it can no longer be edited."""
        if view.draft:
            await self._draft(view)
            return True
        outcome = await self.chats.edit(
            view.address, view.message, view.text, view.keyboard,
            wanted=lambda: self._is_wanted(view), partial=True,
        )  # fmt: skip
        return outcome in ("OK", "DROPPED")

    def _is_wanted(self, view: TurnView) -> bool:
        return not view.over and self.holding()

    async def _draft(self, view: TurnView) -> bool:
        """Show a draft; clients show an empty one as "Thinking…"."""
        part = view.text if view.answer.text or view.place else TextPart("")
        draft_id = int.from_bytes(view.key[1].encode()[-6:], "big") or 1
        return await self.chats.draft(view.address, draft_id, part, lambda: self._is_wanted(view))

    # Around turns

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        self._background.start(work, f"rolecall telegram {name}")

    async def _delete_ring(self, address: Address) -> None:
        """Delete the message that says that the last answer is ready: its user has seen it."""
        with suppress(ServerError):
            for name, message in (await self.turn_messages.of(address.conversation, RING)).messages.items():
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
    answer: AnswerText = field(default_factory=AnswerText)
    over: bool = False
    message: int = 0
    draft: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, str]:
        return self.received.conversation, self.received.turn

    @property
    def state(self) -> tuple[int, int]:
        """What the text depends on."""
        return self.place, len(self.answer.text)

    @property
    def text(self) -> TextPart:
        """The text that the message should have now."""
        if self.answer.text and (part := partial(self.answer.text)).text:
            return part
        if self.place:
            return TextPart(say(self.language, "place", place=self.place))
        return TextPart(say(self.language, "thinking"))

    @property
    def keyboard(self) -> Keyboard:
        return stop_keyboard(self.received.turn, self.language)
