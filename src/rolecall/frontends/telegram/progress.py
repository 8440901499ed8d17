"""Turns in the making, as their users see them: a placeholder at once, their place, typing, the text as it grows.

All of it may get lost without harm: the answer itself is the deliverer's. It is never written over: from the moment
the deliverer begins with a turn, nothing of it is written here.
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
from rolecall.frontends.telegram.buttons import working
from rolecall.frontends.telegram.chats import Chats, Gone, Keyboard
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import partial
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.placeholders import Recorded
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
TYPING_SECONDS = 4.0
"""Telegram shows it for five."""
TYPING_AFTER = 0.5
"""The placeholder is there already: what others wait for goes first."""
DRAFT_SECONDS = 20.0
"""Telegram shows a draft for thirty."""
ENDED = 4096
RING = "ring"
"""Stands for a turn: the one notice of a conversation that an answer is ready."""


class Live:
    """Shows the turns that ``show`` was told of. ``holding`` says whether this process is the one that delivers: only
    then it streams. With ``drafts`` a private chat sees the text grow as a draft, and no placeholder."""

    def __init__(
        self,
        bus: Bus,
        wakeups: Wakeups,
        chats: Chats,
        recorded: Recorded,
        *,
        front: str = "telegram",
        holding: Callable[[], bool] = lambda: True,
        drafts: bool = False,
    ) -> None:
        self.bus, self.wakeups, self.chats, self.recorded = bus, wakeups, chats, recorded
        self.front, self.holding, self.drafts = front, holding, drafts
        self._turns: dict[tuple[str, str], Watched] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._passing = BackgroundTasks()
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def show(self, received: Received, address: Address, message_id: int, language: str | None) -> None:
        """Let the user see that the message was taken and what becomes of it. Returns at once: neither Telegram nor a
        model is waited for. Called again for the same turn (a repeat, a part that joined it) it changes nothing."""
        if message_id:
            self.chats.saw(address, message_id)
        watched = Watched(received, address, message_id, language, received.place)
        if received.refused or not received.turn or watched.key in self._turns or watched.key in self._ended:
            return
        self._turns[watched.key] = watched
        name = f"rolecall telegram turn {received.short_id}"
        self._tasks[watched.key] = asyncio.create_task(self._watch(watched), name=name)

    def end(self, conversation: str, turn: str) -> str:
        """Write nothing more of this turn: its answer is there. Returns what its user has seen of it. What is being
        written this moment, the chat's order puts before whatever is written next."""
        key = (conversation, turn)
        self._ended[key] = None
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)
        watched = self._turns.get(key)
        if watched is None:
            return ""
        watched.over = True
        watched.changed.set()
        return watched.growing.text

    @property
    def showing(self) -> int:
        """How many turns are shown in the making."""
        return len(self._turns)

    async def resume(self) -> int:
        """Show what is in the making already, say after a restart; returns how many turns."""
        count = 0
        for conversation in await active_conversations(self.bus):
            address = Address.of(conversation)
            if address is not None and address.front == self.front:
                count += await self._resume(conversation, address)
        await self.recorded.doubts.resume(self.front)
        return count

    async def aclose(self) -> None:
        """Stop showing. What was shown stays, the answers will take its place."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._passing.drain(0)

    async def _resume(self, conversation: str, address: Address) -> int:
        current = await running_turn(self.bus, conversation)
        waiting = {current: 0} if current else {}
        waiting |= await places(self.bus, conversation)
        for turn, place in waiting.items():
            shown = await self.recorded.of(conversation, turn)
            received = Received(conversation, turn, outcome="DUP", place=place, at=shown.at)
            await self.show(received, address, 0, shown.language)
        return len(waiting)

    # One turn

    async def _watch(self, watched: Watched) -> None:
        try:
            if watched.received.outcome in ("RUN", "WAIT") or await self._unfinished(watched):
                await self._show(watched)
        except* ServerError as errors:
            logger.info("%s is not shown any more: %s", watched.key[0], errors.exceptions[0])
        except* TelegramError as errors:
            logger.warning("%s is not shown any more: %s", watched.key[0], explain(errors.exceptions[0]))
        finally:
            del self._turns[watched.key], self._tasks[watched.key]

    async def _show(self, watched: Watched) -> None:
        first = watched.state
        watched.draft = self.drafts and watched.address.private and await self._draft(watched)
        if not watched.draft and not await self._placed(watched):
            return
        await self.recorded.about(*watched.key, watched.language, watched.received.at)
        self._in_passing(self._hush(watched.address), "hush")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._paint(watched, first), name="rolecall telegram paint")
            try:
                await self._follow(watched)
            finally:  # what is on its way arrives: cut off, it could still be done, and over the answer
                watched.over = True
                watched.changed.set()

    async def _unfinished(self, watched: Watched) -> bool:
        """Whether there is something to show of a turn that may be an old one."""
        return (await snapshot(self.bus, *watched.key)).state.unfinished

    async def _placed(self, watched: Watched) -> bool:
        """Have the placeholder made; False when nobody can see it."""
        conversation, turn = watched.key
        made = await self.recorded.make(
            watched.address, turn, watched.look, after=watched.message_id, keyboard=watched.keyboard,
            reply_to=None if watched.address.private else watched.message_id or None,
        )  # fmt: skip
        if isinstance(made, Gone):
            logger.info("%s: no placeholder: %s", conversation, made.reason)
            return False
        watched.message = made
        return True

    async def _follow(self, watched: Watched) -> None:
        conversation, turn = watched.key
        async for event in follow(self.bus, self.wakeups, conversation, turn, watched.received.before):
            self._hear(watched, event)
            if event.last:
                return
            if event.kind == "started":
                await self._move_up(conversation)

    def _hear(self, watched: Watched, event: Event) -> None:
        if event.kind in ("accepted", "queued"):
            watched.place = event.place
        elif event.kind == "started":
            watched.place = 0
            watched.growing.restart()
        elif event.kind == "delta":
            watched.growing.apply(event)
        watched.changed.set()

    async def _move_up(self, conversation: str) -> None:
        """Tell those who wait in ``conversation`` their places anew."""
        waiting = [one for one in self._turns.values() if one.key[0] == conversation and one.place]
        by_turn = await places(self.bus, conversation) if waiting else {}
        for watched in waiting:
            watched.place = by_turn.get(watched.key[1], 0)
            watched.changed.set()

    async def _paint(self, watched: Watched, painted: tuple[int, int]) -> None:
        """Keep typing, and the message as it should read."""
        typing, drafted = time.monotonic() + TYPING_AFTER, 0.0
        while True:
            watched.changed.clear()
            if watched.over:
                return
            now = time.monotonic()
            if not watched.place and now >= typing:
                await self.chats.typing(watched.address)
                typing = now + TYPING_SECONDS
            stalled = 0.0
            if self._has_news(watched, painted) or (watched.draft and now - drafted > DRAFT_SECONDS):
                stalled = self.chats.stalled(watched.address)
                if not stalled:
                    painted, drafted = watched.state, now
                    if not await self._painted(watched):
                        return
                    continue
            longest = TYPING_SECONDS if watched.place else max(typing - now, TYPING_AFTER)
            await self._rest(watched, stalled, longest)

    async def _rest(self, watched: Watched, stalled: float, longest: float) -> None:
        """Wait for a chat to be ready, which no news makes sooner, or else for news."""
        if stalled:
            await asyncio.sleep(min(stalled, longest))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await watched.changed.wait()

    def _has_news(self, watched: Watched, painted: tuple[int, int]) -> bool:
        """Whether the look is another one. An answer that begins anew leaves the old one until it has text."""
        length = len(watched.growing.text)
        return watched.state != painted and (length > 0 or painted[1] == 0) and self.holding()

    async def _painted(self, watched: Watched) -> bool:
        """Bring the message up to date; False when that cannot be any more."""
        if watched.draft:
            await self._draft(watched)
            return True
        outcome = await self.chats.edit(
            watched.address, watched.message, watched.look, watched.keyboard,
            wanted=lambda: self._is_wanted(watched), partial=True,
        )  # fmt: skip
        return outcome in ("OK", "DROPPED")

    def _is_wanted(self, watched: Watched) -> bool:
        return not watched.over and self.holding()

    async def _draft(self, watched: Watched) -> bool:
        """Show it as a draft; one that is empty reads "Thinking…" in the user's own client."""
        part = watched.look if watched.growing.text or watched.place else TextPart("")
        draft_id = int.from_bytes(watched.key[1].encode()[-6:], "big") or 1
        return await self.chats.draft(watched.address, draft_id, part, lambda: self._is_wanted(watched))

    # Beside turns

    def _in_passing(self, work: Coroutine[None, None, None], name: str) -> None:
        self._passing.start(work, f"rolecall telegram {name}")

    async def _hush(self, address: Address) -> None:
        """Who writes has seen that the last answer was ready: the notice of it goes."""
        with suppress(ServerError):
            for name, message in (await self.recorded.of(address.conversation, RING)).messages.items():
                await self.chats.delete(address, message)
                await self.recorded.forget(address, RING, message, name)


@dataclass
class Watched:
    """A turn in the making: what is known of it, and what of that its user was shown."""

    received: Received
    address: Address
    message_id: int
    language: str | None
    place: int = 0
    growing: AnswerText = field(default_factory=AnswerText)
    over: bool = False
    message: int = 0
    draft: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, str]:
        return self.received.conversation, self.received.turn

    @property
    def state(self) -> tuple[int, int]:
        """What its look depends on."""
        return self.place, len(self.growing.text)

    @property
    def look(self) -> TextPart:
        """How the message should read now."""
        if self.growing.text and (part := partial(self.growing.text)).text:
            return part
        if self.place:
            return TextPart(say(self.language, "place", place=self.place))
        return TextPart(say(self.language, "thinking"))

    @property
    def keyboard(self) -> Keyboard:
        return working(self.received.turn, self.language)
