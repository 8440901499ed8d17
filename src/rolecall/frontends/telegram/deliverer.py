"""Answers on their way out: each takes the place of the message that promised it, once, whatever stops in between.

An entry of the outbox is delivered by steps that may all be repeated: its messages are made (recorded.py), edited into
what they have to show (the same again is "not modified"), and only then the entry is said to be delivered. Stopped
anywhere, a successor finds the messages that are recorded and goes on with what is left.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rolecall.bus.blobs import Blobs
from rolecall.bus.outbox import Outbox, OutboxEntry
from rolecall.bus.turn import Records, is_control
from rolecall.frontends.telegram.buttons import answered
from rolecall.frontends.telegram.chats import Chats, File, Gone, Keyboard
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import plain, render
from rolecall.frontends.telegram.message import Address
from rolecall.frontends.telegram.outlet import Outcome
from rolecall.frontends.telegram.placeholders import Recorded, Shown
from rolecall.frontends.telegram.progress import RING, Live
from rolecall.frontends.texts import say

logger = logging.getLogger(__name__)
PROMISE = TextPart("…")
"""What a further message says until its text is in it."""
NOTICE = TextPart("🔔 …")
REPLACEMENTS = 5
RING_SECONDS = 30.0
RUNG = "rung"


class Deliverer:
    """Delivers what ``outbox`` holds. ``holding`` says whether this process is the one that may; ``ring_seconds`` is
    how long a turn has to take for its user to be rung at its end, 0 for never."""

    def __init__(
        self,
        outbox: Outbox,
        chats: Chats,
        live: Live,
        recorded: Recorded,
        blobs: Blobs,
        *,
        holding: Callable[[], bool] = lambda: True,
        ring_seconds: float = RING_SECONDS,
    ) -> None:
        self.outbox, self.chats, self.live, self.recorded, self.blobs = outbox, chats, live, recorded, blobs
        self.holding, self.ring_seconds = holding, ring_seconds

    async def deliver(self, entry: OutboxEntry) -> bool:
        """Deliver ``entry`` and say so; False when this process may not any more. Waits for as long as Telegram lets
        that chat wait, or is away. What can never be delivered is noted in the transcript."""
        address, turn = Address.of(entry.conversation), entry.turn or f"notice:{entry.id}"
        if address is None:
            return await self._settle(entry, Shown(), f"{entry.conversation} is no chat")
        seen = self.live.end(entry.conversation, turn)
        shown = await self.recorded.of(entry.conversation, turn)
        delivery = AnswerDelivery(self, entry, address, turn, shown)
        outcome = await delivery.put(await self._pieces(entry, shown.language, seen))
        if outcome == "DROPPED":
            return False
        if outcome != "OK":
            return await self._settle(entry, shown, self.chats.reason(address) or "its message disappears")
        await self.recorded.clear(address, turn, shown)
        await self._settle(entry, shown, "")
        await self._ring(entry, address, shown, delivery.messages[-1])
        return True

    async def _settle(self, entry: OutboxEntry, shown: Shown, failure: str) -> bool:
        """Take the entry out of the outbox, with its line in the transcript; True."""
        records = Records(f"{self.outbox.front}:{self.outbox.bus.process.partition('~')[0]}:0")
        if failure:
            records.add("ERROR", f"not delivered: {failure}")
            logger.warning("%s: turn %s was not delivered: %s", entry.conversation, entry.turn or "-", failure)
        else:
            records.add("DELIVERED", "")
        await self.outbox.delivered(entry, records, shown.at)
        return True

    # ── what there is to show ───────────────────────────────────────────────────────────────────

    async def _pieces(self, entry: OutboxEntry, language: str | None, seen: str) -> Sequence[TextPart | File]:
        payload = entry.payload or {}
        files = [file async for file in self._files(entry.conversation, payload)]
        return [*_texts(entry.kind, payload, language, seen), *files] or [TextPart(say(language, "no_answer"))]

    async def _files(self, conversation: str, payload: Mapping[str, Any]) -> Any:
        """The files of an answer that are still there: ``images`` are blob ids, ``files`` have a name, too."""
        for number, (blob_id, name) in enumerate(_listed(payload), 1):
            blob = await self.blobs.get(conversation, blob_id)
            if blob is None:
                logger.warning("%s: a file of an answer is not kept any more", conversation)
            else:
                ending = blob.media_type.partition("/")[2].partition("+")[0]
                yield File(blob.data, blob.media_type, name or f"{number}.{ending}")

    # ── saying that it is there ─────────────────────────────────────────────────────────────────

    async def _ring(self, entry: OutboxEntry, address: Address, shown: Shown, message: int) -> None:
        """Edits do not ring: after a long turn a short reply to its answer does. It goes when the user writes next, and
        comes at most once: who crashes here does not ring."""
        long = self.ring_seconds and shown.at and entry.at - shown.at >= self.ring_seconds * 1000
        if not long or entry.kind not in ("final", "error") or is_control(entry.turn):
            return
        mark = f"~{secrets.token_hex(4)}"
        if await self.recorded.placeholders.record(entry.conversation, entry.turn, mark, RUNG) == mark:
            ready = TextPart(say(shown.language, "answer_ready"))
            await self.recorded.make(address, RING, ready, name=entry.turn, ring=True, reply_to=message)


class AnswerDelivery:
    """One entry on its way into the messages of its chat."""

    def __init__(self, deliverer: Deliverer, entry: OutboxEntry, address: Address, turn: str, shown: Shown) -> None:
        self._chats, self._recorded, self._holding = deliverer.chats, deliverer.recorded, deliverer.holding
        self._entry, self._address, self._turn, self._shown = entry, address, turn, shown
        self.messages: list[int] = []
        """What shows it, so far."""

    async def put(self, pieces: Sequence[TextPart | File]) -> Outcome:
        """Show ``pieces``, a message each; OK, or what stands against it."""
        for number, piece in enumerate(pieces):
            keyboard = self._keyboard() if number == len(pieces) - 1 else None
            outcome = await self._put(str(number), piece, keyboard)
            if outcome != "OK":
                return outcome
        return "OK"

    def _keyboard(self) -> Keyboard | None:
        ordinary = self._entry.turn and not is_control(self._entry.turn)
        return answered(self._entry.turn, self._shown.language) if ordinary else None

    async def _put(self, name: str, piece: TextPart | File, keyboard: Keyboard | None) -> Outcome:
        """Show one piece in the message recorded for it. One that was deleted, or cannot be edited any more, is
        replaced; that another one replaced it meanwhile shows when it is forgotten (Placeholders.forget)."""
        for _ in range(REPLACEMENTS):
            message = self._shown.messages.pop(name, None) or await self._make(name)
            if isinstance(message, Gone):
                return "BLOCKED"
            outcome = await self._edit(message, piece, keyboard)
            if outcome == "OK":
                self.messages.append(message)
            if outcome not in ("GONE", "TOO_OLD"):
                return outcome
            if outcome == "TOO_OLD":
                await self._chats.delete(self._address, message)
            await self._recorded.forget(self._address, self._turn, message, name)
        return "GONE"

    async def _make(self, name: str) -> int | Gone:
        """A message to be edited. A further one refers to the one before when others came between."""
        before, notice = (self.messages or [0])[-1], self._entry.kind == "notice"
        apart = before and self._chats.newest(self._address) > before
        return await self._recorded.make(
            self._address, self._turn, NOTICE if notice else PROMISE, name=name, after=before,
            ring=notice and name == "0", reply_to=before if apart else None,
        )  # fmt: skip

    async def _edit(self, message: int, piece: TextPart | File, keyboard: Keyboard | None) -> Outcome:
        """Let the message show the piece; one that Telegram does not take is not kept quiet about."""
        if isinstance(piece, File):
            outcome = await self._chats.edit_file(self._address, message, piece, keyboard, wanted=self._holding)
            excuse = say(self._shown.language, "file_unsent", name=piece.name)
        else:
            outcome = await self._chats.edit(self._address, message, piece, keyboard, wanted=self._holding)
            excuse = say(self._shown.language, "text_unsent")
        if outcome != "REFUSED":
            return outcome
        return await self._chats.edit(self._address, message, TextPart(excuse), keyboard, wanted=self._holding)


def _texts(kind: str, payload: Mapping[str, Any], language: str | None, seen: str) -> Iterable[TextPart]:
    text = str(payload.get("text", ""))
    if kind in ("final", "notice"):
        return render(text)
    if kind == "cancelled" and payload.get("reason") == "interrupted":
        text = say(language, "interrupted")
    if kind == "cancelled" and seen:  # what the user has read does not disappear
        return render(f"{seen}\n\n⏹ {text}")
    return plain(text)


def _listed(payload: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The blob ids and names of an answer's files, whatever else an agent may have put there."""
    for item in [*_list(payload.get("images")), *_list(payload.get("files"))]:
        if isinstance(item, str):
            yield item, ""
        elif isinstance(item, Mapping) and isinstance(item.get("blob"), str):
            yield item["blob"], str(item.get("name") or "")


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
