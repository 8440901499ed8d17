"""Asking people: a handler puts a question to the user and waits for the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import partial

import msgspec

from rolecall.agent.waits import MAX_DAYS, Waits
from rolecall.bus.bus import Bus
from rolecall.bus.envelope import Envelope, cut
from rolecall.bus.leases import Delivery
from rolecall.bus.steps.answers import CONFIRM, MOST_OPTIONS, QuestionPlace, UserQuestion, expire
from rolecall.bus.turn import quoted
from rolecall.errors import CannotAsk, StepError, expect

ASKS = "asks"
"""In the meta of an envelope whose front end can put questions to its user: true, or the user's language."""
MOST_CHARS = 2_000
OPTION_CHARS = 100


class People:
    """Puts the questions of one handling."""

    def __init__(self, bus: Bus, delivery: Delivery, envelope: Envelope, waits: Waits, instance: str) -> None:
        self._bus = bus
        self._delivery = delivery
        self._asks = envelope.meta.get(ASKS)
        self._front = envelope.reply_to or str(envelope.meta.get("front", "")) or "this front end"
        self._waits = waits
        self._instance = instance

    async def confirm(self, text: str, timeout: timedelta, default: bool, who: Sequence[str]) -> bool:
        """See Context.confirm."""
        expect(isinstance(default, bool), "default", default, "True or False")
        return await self._ask("confirm", text, CONFIRM, timeout, 0 if default else 1, who) == 0

    async def choose(
        self, text: str, options: Sequence[str], timeout: timedelta, default: str | None, who: Sequence[str]
    ) -> str | None:  # fmt: skip
        """See Context.choose."""
        expect(isinstance(options, Sequence) and not isinstance(options, str), "options", options, "a list of texts")
        for one in options:
            expect(isinstance(one, str), "an option of choose()", one)
        if not 1 <= len(options) <= MOST_OPTIONS or len(set(options)) < len(options):
            self._refuse(f"choose() has {len(options)} options: expected 1 to {MOST_OPTIONS} different ones")
        if any(not 0 < len(one) <= OPTION_CHARS for one in options):
            self._refuse(f"choose() has an option that is no text of 1 to {OPTION_CHARS} characters")
        if default is not None and default not in options:
            self._refuse(f"choose(default={default!r}) is invalid: expected one of the options")
        number = -1 if default is None else options.index(default)
        choice = await self._ask("choose", text, options, timeout, number, who)
        return options[choice] if choice >= 0 else None

    async def _ask(
        self, style: str, text: str, options: Sequence[str], timeout: timedelta, default: int, who: Sequence[str]
    ) -> int:  # fmt: skip
        if not isinstance(timeout, timedelta):
            self._refuse(f"timeout={timeout!r} is invalid: expected a timedelta")
        seconds = timeout.total_seconds()
        if not 0 < seconds <= MAX_DAYS * 86_400:
            self._refuse(f"timeout={seconds:g} s is invalid: expected more than 0 s to {MAX_DAYS} days")
        expect(isinstance(text, str), "the question", text)
        expect(isinstance(who, Iterable) and not isinstance(who, str), "who", who, "users, such as ['telegram:42']")
        for one in who:
            expect(isinstance(one, str), "a user of who", one)
        if not 0 < len(text) <= MOST_CHARS:
            self._refuse(f"the question has {len(text)} characters: expected 1 to {MOST_CHARS}")
        wait = self._waits.wait("question", style, seconds=seconds, still=True, text=f"an answer to {quoted(text)}")
        if wait.run.found is None and not self._asks:
            why = f"{self._front} cannot ask its user: use a front end that can, or do not ask there"
            self._waits.recorder.broke(CannotAsk(why))
        question = str(QuestionPlace(self._delivery.turn, self._delivery.hop, wait.key))
        wait.asked = UserQuestion(
            id=question, text=cut(text), options=tuple(map(cut, options)),
            style="confirm" if style == "confirm" else "choose", who=tuple(map(cut, who)), default=default,
            seconds=seconds, language=self._asks if isinstance(self._asks, str) else "",
        )  # fmt: skip
        wait.late = partial(expire, self._bus, self._delivery.conversation, question, self._instance)
        (result,) = await self._waits.results([wait])
        return int(msgspec.json.decode(result or b"{}")["choice"])

    def _refuse(self, why: str) -> None:
        self._waits.recorder.broke(StepError(why))
