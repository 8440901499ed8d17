"""Delivers answers: each replaces its placeholder, exactly once, whatever is killed in between.

Every step of a delivery can be repeated: the messages are created (placeholders.py) and edited into their content
(repeating an edit is "not modified"), and only then the entry is acknowledged. If the process dies at any point, its
successor finds the recorded messages and continues.

No delivery blocks the ones behind it for good. A message that Telegram keeps failing to edit is replaced by a new one,
in plain text. If that fails too while Telegram otherwise answers, the entry becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rolecall.bus.blobs import Blobs
from rolecall.bus.envelope import short_turn_id
from rolecall.bus.outbox import Outbox, OutboxEntry
from rolecall.bus.schedule.schedules import schedules_of, unschedule
from rolecall.bus.turn import Records, is_control
from rolecall.frontends.reminders import late_text
from rolecall.frontends.telegram.access import Access
from rolecall.frontends.telegram.buttons import answer_keyboard, question_message
from rolecall.frontends.telegram.chats import Chats, Keyboard, OutgoingFile, Unreachable
from rolecall.frontends.telegram.markdown.entities import TextPart
from rolecall.frontends.telegram.markdown.render import plain, render
from rolecall.frontends.telegram.message import PRINCIPAL, Address
from rolecall.frontends.telegram.outlet import ANSWER, SendOutcome, is_lost
from rolecall.frontends.telegram.placeholders import REPLY, TurnMessages, TurnRecord
from rolecall.frontends.telegram.progress import RING, SHOWN, ProgressDisplay
from rolecall.frontends.texts import answer_notes, failure_text, rejection_text, say

logger = logging.getLogger(__name__)
FURTHER = TextPart("…")
"""The text of a further message until its content is in it."""
NOTICE = TextPart("🔔 …")
REPLACEMENTS = 5
RING_SECONDS = 30.0
RUNG = "rung"
DESCRIBED_SECONDS = 1.0
"""How long an answer waits for the description of its question, which is written right after the question was admitted,
unless the process that did so has died."""
FAILING_SECONDS = 20.0
"""How long a delivery may fail, while Telegram answers other requests, before it is given up."""


class TelegramAway(OSError):
    """Telegram answers nothing, so that a delivery has to wait."""


class Deliverer:
    """Delivers the entries of ``outbox``, which says what this process may deliver. Users are notified at the end of
    turns that took ``ring_seconds`` or longer; 0 for never."""

    def __init__(
        self,
        outbox: Outbox,
        chats: Chats,
        progress: ProgressDisplay,
        turn_messages: TurnMessages,
        blobs: Blobs,
        access: Access,
        *,
        ring_seconds: float = RING_SECONDS,
    ) -> None:
        self.outbox, self.chats, self.progress = outbox, chats, progress
        self.turn_messages, self.blobs, self.access = turn_messages, blobs, access
        self.ring_seconds = ring_seconds
        self._failing: dict[tuple[int, str], float] = {}

    @property
    def _instance(self) -> str:
        """How transcripts show this process."""
        return self.outbox.bus.instance(self.outbox.front)

    async def deliver(self, entry: OutboxEntry) -> bool:
        """Deliver ``entry`` and acknowledge it; False if this process may no longer deliver. Waits while the chat is
        rate-limited. An entry that can never be delivered becomes an ERROR in the transcript and a dead letter. Raises
        TelegramAway."""
        address, turn = Address.of(entry.conversation), entry.turn or f"notice:{entry.id}"
        if address is None:
            return await self._settle(entry, TurnRecord(), f"{entry.conversation} is not a Telegram chat")
        if entry.kind == SHOWN:
            await self.progress.show_handed_over(address, entry.payload or {})
            return await self.outbox.delivered(entry, Records(self.outbox.front))
        if entry.kind == "reply":
            return await self._reply(entry, address, entry.payload or {})
        if entry.kind == "asked":
            question = (await self.turn_messages.of(entry.conversation, entry.turn)).question
            shown = question_message(entry.payload or {})
            return await self._reply(entry, address, {**shown, "question": question, "quote": not address.private})
        seen = self.progress.end(entry.conversation, turn)
        if entry.schedule and await self._is_shut_out(entry, address):
            await unschedule(self.outbox.bus, entry.conversation, entry.schedule, instance=self._instance)
            await self.turn_messages.abandon(address, turn)
            return await self._settle(entry, TurnRecord(), "who set the reminder has no access any more")
        record = await self._described(entry, turn)
        delivery = AnswerDelivery(self, entry, address, turn, record)
        outcome = await delivery.put(await self._pieces(entry, record.language, seen))
        if outcome == "DROPPED":
            return False
        if outcome == "FAILING":
            return await self._give_up_hopeless(entry, address, record)
        self._failing.pop((entry.shard, entry.id), None)
        if outcome != "OK":
            await self.turn_messages.abandon(address, turn)
            reason = self.chats.reason(address)
            if entry.schedule and is_lost(reason):  # nobody reads the next ones either
                await unschedule(self.outbox.bus, entry.conversation, instance=self._instance)
            return await self._settle(entry, record, reason or "its message keeps disappearing")
        await self.progress.ended(entry.conversation, turn)
        await delivery.remove_further()
        await self.turn_messages.clear(address, turn, record)
        await self._settle(entry, record, "")
        await self._ring(entry, address, record, delivery.messages[-1])
        return True

    async def _is_shut_out(self, entry: OutboxEntry, address: Address) -> bool:
        """Whether the user who set a schedule that goes on was let in by settings that no longer do so."""
        found = (
            one.definition.user
            for one in await schedules_of(self.outbox.bus, entry.conversation)
            if one.id == entry.schedule
        )
        user = next(found, "").removeprefix(PRINCIPAL)
        return user.lstrip("-").isdecimal() and not (await self.access.status_of(int(user), address.chat)).allowed

    async def _described(self, entry: OutboxEntry, turn: str) -> TurnRecord:
        """The record of the turn, once its question is described: an answer may be there before that."""
        until = time.monotonic() + DESCRIBED_SECONDS
        while True:
            record = await self.turn_messages.of(entry.conversation, turn)
            if record.at or not entry.turn or entry.schedule or time.monotonic() > until:
                return record
            await asyncio.sleep(0.02)

    async def _reply(self, entry: OutboxEntry, address: Address, payload: Mapping[str, Any]) -> bool:
        """Deliver what the front end itself says, or what an agent asks. The messages are sent as they are; a duplicate
        whose sending could not be confirmed is found and deleted. Quoting, each replies to the one before it. In a
        private chat, what the front end says quotes its message if others stand between."""
        turn = f"{REPLY}{entry.id}"
        question, quote, rows = int(payload.get("question") or 0), bool(payload.get("quote")), payload.get("buttons")
        keyboard = Keyboard.de_json({"inline_keyboard": rows}, None) if rows else None
        parts, before = plain(str(payload.get("text", ""))), question
        apart = entry.kind == "reply" and self.chats.newest(address) > question
        for number, part in enumerate(parts):
            if not self.outbox.holds(entry.conversation):
                return False
            sent = await self.turn_messages.create(
                address, turn, part, name=str(number), after=question, priority=ANSWER,
                reply_to=before if before and (quote or (apart and not number)) else None,
                keyboard=keyboard if number == len(parts) - 1 else None,
            )  # fmt: skip
            if isinstance(sent, Unreachable):
                if sent.failing:
                    return await self._give_up_hopeless(entry, address, TurnRecord())
                logger.info("%s: a reply was not delivered: %s", entry.conversation, sent.reason)
                break
            before = sent
        self._failing.pop((entry.shard, entry.id), None)
        await self.turn_messages.clear(address, turn, await self.turn_messages.of(entry.conversation, turn))
        await self.outbox.delivered(entry, Records(self.outbox.front))
        return True

    async def _give_up_hopeless(self, entry: OutboxEntry, address: Address, record: TurnRecord) -> bool:
        """Give a delivery up that has failed for long while Telegram answers other requests; returns True. Until then
        it raises TelegramAway."""
        now, reason = time.monotonic(), f"Telegram keeps failing: {self.chats.reason(address)}"
        since = self._failing.setdefault((entry.shard, entry.id), now)
        if not await self.chats.answers():
            del self._failing[entry.shard, entry.id]  # it is no fault of this message
            raise TelegramAway(reason)
        if now - since < FAILING_SECONDS:
            raise TelegramAway(reason)
        del self._failing[entry.shard, entry.id]
        logger.warning("%s: turn %s was not delivered: %s", entry.conversation, entry.turn or "-", reason)
        await self.outbox.give_up(entry, reason, record.at)
        return True

    async def _settle(self, entry: OutboxEntry, record: TurnRecord, failure: str) -> bool:
        """Acknowledge the entry, with its line in the transcript; returns True."""
        records = Records(self._instance)
        if failure:
            records.add("ERROR", f"not delivered: {failure}")
            logger.warning("%s: turn %s was not delivered: %s", entry.conversation, entry.turn or "-", failure)
        else:
            records.add("DELIVERED", "")
        await self.outbox.delivered(entry, records, record.at)
        return True

    # ── content ───────────────────────────────────────────────────────────────────

    async def _pieces(self, entry: OutboxEntry, language: str | None, seen: str) -> Sequence[TextPart | OutgoingFile]:
        """The content of the entry, one piece a message; at least one."""
        payload = entry.payload or {}
        files = [file async for file in self._files(entry.conversation, payload)]
        try:
            texts = _texts(entry, payload, language, seen)
        except Exception:  # the boundary: whatever an agent wrote is delivered, if need be as it is written
            logger.exception("%s: the answer to turn %s cannot be rendered", entry.conversation, entry.turn or "-")
            texts = plain(str(payload.get("text", "")))
        return [*texts, *files] or [TextPart(say(language, "no_answer"))]

    async def _files(self, conversation: str, payload: Mapping[str, Any]) -> Any:
        """The files of an answer whose blobs have not expired."""
        for number, (blob_id, name) in enumerate(_blobs_of(payload), 1):
            blob = await self.blobs.get(conversation, blob_id)
            if blob is None:
                logger.warning("%s: a file of an answer has expired", conversation)
            else:
                ending = blob.media_type.partition("/")[2].partition("+")[0]
                yield OutgoingFile(blob.data, blob.media_type, name or f"{number}.{ending}")

    # ── notification ─────────────────────────────────────────────────────────────────

    async def _ring(self, entry: OutboxEntry, address: Address, record: TurnRecord, message: int) -> None:
        """After a long turn, reply to its answer with a short message, because edits do not notify. Sent at most once:
        not at all if the process dies here. It is deleted when the user writes next."""
        long = self.ring_seconds and record.at and entry.at - record.at >= self.ring_seconds * 1000
        if not long or entry.kind not in ("final", "error") or is_control(entry.turn):
            return
        mark = f"~{secrets.token_hex(4)}"
        if await self.turn_messages.placeholders.record(entry.conversation, entry.turn, mark, RUNG) == mark:
            ready = TextPart(say(record.language, "answer_ready"))
            await self.turn_messages.create(address, RING, ready, name=entry.turn, ring=True, reply_to=message)


class AnswerDelivery:
    """The delivery of one entry into the messages of its chat."""

    def __init__(
        self, deliverer: Deliverer, entry: OutboxEntry, address: Address, turn: str, record: TurnRecord
    ) -> None:
        self._chats, self._turn_messages = deliverer.chats, deliverer.turn_messages
        self._holding = partial(deliverer.outbox.holds, entry.conversation)
        self._entry, self._address, self._turn, self._record = entry, address, turn, record
        self.messages: list[int] = []
        """The messages that show the entry so far."""

    async def put(self, pieces: Sequence[TextPart | OutgoingFile]) -> SendOutcome:
        """Show each piece in a message; returns OK or the outcome that prevents it."""
        for number, piece in enumerate(pieces):
            keyboard = self._keyboard() if number == len(pieces) - 1 else None
            outcome = await self._put(str(number), piece, keyboard)
            if outcome != "OK":
                return outcome
        return "OK"

    def _keyboard(self) -> Keyboard | None:
        ordinary = self._entry.turn and not is_control(self._entry.turn) and not self._entry.schedule
        return answer_keyboard(self._entry.turn, self._record.language) if ordinary else None

    async def _put(self, name: str, piece: TextPart | OutgoingFile, keyboard: Keyboard | None) -> SendOutcome:
        """Show one piece in the message recorded for it. A message that was deleted or can no longer be edited is
        replaced; ``Placeholders.forget`` does nothing if another process replaced it first."""
        for _ in range(REPLACEMENTS):
            message = self._record.messages.pop(name, None) or await self._create(name)
            if isinstance(message, Unreachable):
                return "FAILING" if message.failing else "BLOCKED"
            outcome = await self._edit(message, piece, keyboard)
            if outcome == "FAILING":
                return await self._replace(name, message, piece, keyboard)
            if outcome == "OK":
                self.messages.append(message)
            if outcome not in ("GONE", "TOO_OLD"):
                return outcome
            if outcome == "TOO_OLD":
                await self._chats.delete(self._address, message)
            await self._turn_messages.forget(self._address, self._turn, message, name)
        return "GONE"

    async def _replace(
        self, name: str, message: int, piece: TextPart | OutgoingFile, keyboard: Keyboard | None
    ) -> SendOutcome:
        """Show one piece in a new message, in plain text, because Telegram keeps failing to edit ``message``, unless it
        answers nothing at all."""
        if not await self._chats.answers():
            return "FAILING"
        await self._turn_messages.forget(self._address, self._turn, message, name)
        if isinstance(piece, OutgoingFile):
            part = TextPart(say(self._record.language, "file_unsent", name=piece.name))
        else:
            part = TextPart(piece.text)
        created = await self._create(name, part, keyboard)
        await self._chats.delete(self._address, message)
        if isinstance(created, Unreachable):
            return "FAILING" if created.failing else "BLOCKED"
        self.messages.append(created)
        return "OK"

    async def _create(
        self, name: str, part: TextPart | None = None, keyboard: Keyboard | None = None
    ) -> int | Unreachable:
        """A new message for a piece. It replies to the piece before it, or to the question, if other messages came
        between; in groups always, since only replies belong to the comments on a channel's post."""
        before = (self.messages or [self._record.question])[-1]
        notice = self._entry.kind == "notice" or bool(self._entry.schedule)
        apart = before and (not self._address.private or self._chats.newest(self._address) > before)
        if part is None:  # until its content is in it; the first of an answer may overtake the placeholder
            part = NOTICE if notice else FURTHER if self.messages else TextPart(say(self._record.language, "thinking"))
        return await self._turn_messages.create(
            self._address, self._turn, part, name=name, after=before,
            keyboard=keyboard, ring=notice and name == "0", reply_to=before if apart else None, priority=ANSWER,
        )  # fmt: skip

    async def remove_further(self) -> None:
        """Delete the messages that a longer text needed while it was growing."""
        found = await self._turn_messages.of(self._address.conversation, self._turn)
        shown = len(self.messages)
        for name in found.messages.keys() | found.intents.keys():
            if name.isdecimal() and int(name) >= shown:
                message = found.messages.get(name) or await self._create(name)  # also finds one that is not confirmed
                if not isinstance(message, Unreachable):
                    await self._chats.delete(self._address, message)
                    await self._turn_messages.forget(self._address, self._turn, message, name)

    async def _edit(self, message: int, piece: TextPart | OutgoingFile, keyboard: Keyboard | None) -> SendOutcome:
        """Edit the message into the piece; if Telegram rejects the content, into a sentence that says so."""
        if isinstance(piece, OutgoingFile):
            outcome = await self._chats.edit_file(self._address, message, piece, keyboard, wanted=self._holding)
            excuse = say(self._record.language, "file_unsent", name=piece.name)
        else:
            outcome = await self._chats.edit(self._address, message, piece, keyboard, wanted=self._holding)
            excuse = say(self._record.language, "text_unsent")
        if outcome != "REFUSED":
            return outcome
        return await self._chats.edit(self._address, message, TextPart(excuse), keyboard, wanted=self._holding)


def _texts(entry: OutboxEntry, payload: Mapping[str, Any], language: str | None, seen: str) -> Iterable[TextPart]:
    kind, text = entry.kind, str(payload.get("text", ""))
    if (failure := failure_text(language, payload)) is not None:
        return plain(failure)
    if (late := late_text(language, payload)) is not None:
        return plain(late)
    if kind == "error":
        turn = short_turn_id(entry.conversation, entry.turn)
        return plain(rejection_text(language, payload, turn) or text)
    if kind in ("final", "notice"):
        notes = answer_notes(language, payload)
        if payload.get("plain"):
            return plain("\n\n".join([text, *notes]))
        return render("\n\n".join([text, *(f"_{note}_" for note in notes)]))
    if kind == "cancelled" and payload.get("reason") == "interrupted":
        text = say(language, "interrupted")
    elif kind == "cancelled" and text == say(None, "stopped"):  # by another front end or the operator
        text = say(language, "stopped")
    if kind == "cancelled" and seen:  # what the user has read stays
        return render(f"{seen}\n\n⏹ {text}")
    return plain(text)


def _blobs_of(payload: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The blob ids and names of an answer's ``images`` (blob ids) and ``files``; agents may have put anything there."""
    for item in [*_list(payload.get("images")), *_list(payload.get("files"))]:
        if isinstance(item, str):
            yield item, ""
        elif isinstance(item, Mapping) and isinstance(item.get("blob"), str):
            yield item["blob"], str(item.get("name") or "")


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()
