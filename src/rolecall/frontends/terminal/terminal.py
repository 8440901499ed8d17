"""A conversation in a terminal: the prompt stays, answers stream above it, what waits is seen."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rolecall.background import BackgroundTasks
from rolecall.bus.bus import Bus
from rolecall.bus.commands import COMMANDS, find_command
from rolecall.bus.envelope import check_conversation
from rolecall.bus.events import AnswerText, Event
from rolecall.bus.outbox import OutboxEntry
from rolecall.bus.wakeups import Wakeups
from rolecall.errors import MissingExtra, NothingRunning, RolecallError
from rolecall.frontends.front import Front, Received
from rolecall.frontends.terminal.text import Rows, plain, rows_of
from rolecall.frontends.texts import answer_notes, say

if TYPE_CHECKING:
    from rolecall.frontends.terminal.prompt import Line, Prompt


Kept = tuple[str, str, Received]
"""A question as it is kept: its text, its key, and what became of it."""
AGAIN_SECONDS = 2.0
PATIENCE_SECONDS = 0.3
"""What is done within this is not worth a word about its state."""


@dataclass(eq=False)
class UserText:
    """A text of the user. ``beside`` are commands that do not wait for the answers before them."""

    text: str
    beside: bool
    received: Received = field(default_factory=lambda: Received(""))
    role: str = ""
    since: float = field(default_factory=time.monotonic)
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    """With which it is sent, so that it is taken once."""

    @property
    def seconds(self) -> float:
        """How long ago it was said, or its answer's turn came."""
        return time.monotonic() - self.since


async def chat(
    bus: Bus,
    wakeups: Wakeups,
    *,
    conversation: str,
    words: Sequence[tuple[str, str]] = (),
    history: Path | None = None,
    language: str = "",
    unanswered: OpenQuestions | None = None,
) -> None:
    """Talk in this process's terminal until the user leaves.

    ``words`` are completed besides the commands, ``history`` is the file of earlier lines. What the application says
    itself is in ``language``. ``unanswered`` are the questions of the process before, whose answers are shown first.
    Raises MissingExtra without prompt_toolkit, RolecallError for an id that no conversation can have.
    """
    try:
        from rolecall.frontends.terminal.prompt import Prompt
    except ModuleNotFoundError:
        raise MissingExtra("terminal", "the chat prompt (--no-chat does without)") from None
    talk = Chat(Front(bus, wakeups, "terminal"), check_conversation(conversation), language)
    known = [(f"/{command.name}", say(language, f"menu_{command.name}")) for command in COMMANDS]
    if unanswered is not None:
        unanswered.of(talk)
    words = [*known, *words]
    talk.prompt = Prompt(talk.say, talk.interrupt, talk.status, words, history, suspends=unanswered is None)
    await talk.run()


class OpenQuestions:
    """The questions of a chat whose process starts again while it goes on. ``keep`` writes them to ``path`` and gives
    the terminal back as it was; the chat of the next process takes them from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chat: Chat | None = None
        self._terminal: list[Any] = []

    def of(self, chat: Chat) -> None:
        """Follow ``chat``, after handing it what the process before has kept. Called before it begins."""
        self._chat = chat
        with suppress(ImportError, OSError):
            import termios

            self._terminal = termios.tcgetattr(sys.stdin)
        with suppress(OSError, msgspec.MsgspecError):
            chat.resume(msgspec.json.decode(self._path.read_bytes(), type=list[Kept]))
        self._path.unlink(missing_ok=True)

    def keep(self, reason: str) -> None:
        """Called just before the process starts again, from any thread, while the chat stands still. Shows the
        ``reason``: what was logged meanwhile waits for the prompt."""
        if self._chat is None:
            return
        if self._terminal:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._terminal)
        with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self._chat.unanswered()))
        os.write(2, f"\r\n{reason}\r\n".encode())


class Chat:
    """One conversation at the prompt. Texts are sent in the order they were entered and answered in that order."""

    name = "terminal"
    prompt: Prompt

    def __init__(self, front: Front, conversation: str, language: str = "") -> None:
        self._front = front
        self._conversation = conversation
        self._language = language
        self._unsent: asyncio.Queue[UserText] = asyncio.Queue()
        self._taken: asyncio.Queue[UserText] = asyncio.Queue()
        self._waiting: deque[UserText] = deque()
        self._current: UserText | None = None
        self._question: Mapping[str, Any] = {}
        self._rows = Rows(lambda: self.prompt.width)
        self._errands = BackgroundTasks()
        self._left = False
        self._stopping: asyncio.Task[None] | None = None
        self._interrupted = -AGAIN_SECONDS
        self._hint = ""

    async def run(self) -> None:
        """Talk until the user leaves."""
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(self._send_all(), name="rolecall chat sends"),
                group.create_task(self._answer_all(), name="rolecall chat answers"),
                group.create_task(self._tell_notices(), name="rolecall chat notices"),
            ]
            await self.prompt.show([("dim", "/help lists the commands, Ctrl-D leaves"), ("", "")])
            await self.prompt.run()
            self._left = True
            if self._stopping is not None:
                await asyncio.wait([self._stopping], timeout=AGAIN_SECONDS)
            for task in working:
                task.cancel()
            self._errands.cancel()
        await self._farewell()

    def unanswered(self) -> list[Kept]:
        """The questions that are on their way or wait."""
        return [(said.text, said.key, said.received) for said in (self._current, *self._waiting) if said]

    def resume(self, unanswered: Sequence[Kept]) -> None:
        """Show the answers of these questions as if they had been asked here."""
        for text, key, received in unanswered:
            said = UserText(text, False, received, key=key)
            self._waiting.append(said)
            (self._taken if received.turn else self._unsent).put_nowait(said)

    async def _tell_notices(self) -> None:
        async for event in self._front.notices(self._conversation):
            await self._show([*(("", row) for row in rows_of(plain(event.text), self.prompt.width)), ("", "")])

    async def deliver(self, entry: OutboxEntry) -> None:
        """Show a text that came without a question of this prompt. Answers are streamed as they grow."""
        await self.prompt.show([("", plain(str((entry.payload or {}).get("text", ""))))])

    async def drain(self) -> None:
        """Leave the prompt."""
        self.prompt.leave()

    # ── what the prompt calls ───────────────────────────────────────────────────────────────────

    def say(self, text: str) -> None:
        """Send ``text``, after what was said before."""
        text = text.strip()
        if not text:
            return
        if self._question and (choice := _choice(text, self._question)) is not None:
            self._errand(self._reply(self._question["id"], choice))
            return
        self._interrupted = -AGAIN_SECONDS
        command = find_command(text)
        said = UserText(text, beside=command is not None and command.lane != "ordered")
        if not said.beside:
            self._waiting.append(said)
        self._unsent.put_nowait(said)

    def interrupt(self, typed: bool) -> None:
        """Ctrl-C: stops the answers; when there are none empties the line; then, or soon after, leaves."""
        again = time.monotonic() - self._interrupted < AGAIN_SECONDS
        busy = self._current is not None or bool(self._waiting)
        if again or not (busy or typed):
            return self.prompt.leave()
        self._interrupted = time.monotonic()
        self._hint = "  stopped, Ctrl-C again leaves" if busy else "  Ctrl-C again leaves"
        if busy:
            self._stopping = self._errand(self._stop())
        else:
            self.prompt.clear()

    def status(self) -> list[str]:
        """What is waited for, one row each."""
        shown = [said for said in self._waiting if self._current or said.seconds > PATIENCE_SECONDS]
        rows = [f"  {_place(said, place)}: {_line(said.text)}" for place, said in enumerate(shown, 1)]
        if time.monotonic() - self._interrupted < AGAIN_SECONDS:
            return [*rows, self._hint]
        current = self._current
        if current is None or current.seconds < PATIENCE_SECONDS:
            return rows
        doing = current.role or (f"waiting, place {current.received.place}" if current.received.place else "sent")
        return [*rows, f"  {doing} · {current.seconds:.0f} s · Ctrl-C stops"]

    # ── on the way ──────────────────────────────────────────────────────────────────────────────

    async def _send_all(self) -> None:
        while not self._left:
            said = await self._unsent.get()
            try:
                said.received = await self._front.receive(
                    self._conversation, said.text, idempotency=said.key, meta={"asks": True}, language=self._language
                )
            except RolecallError as error:
                await self._settle_beside(said, f"not sent: {error}", "error")
                continue
            if not said.received.turn:
                await self._settle_beside(said, said.received.reply, "error" if said.received.refused else "")
            elif said.beside:
                self._errand(self._answer_beside(said))
            else:
                self._taken.put_nowait(said)

    async def _answer_all(self) -> None:
        # Not for ever: on Python 3.11 wait_for, which redis-py sends with, may swallow the cancellation.
        while not self._left:
            said = await self._taken.get()
            self._waiting.remove(said)
            self._current, said.since = said, time.monotonic()
            await self._show(_asked(said, self.prompt.width))
            await self._warn_if_alone()
            try:
                final = await self._answer(said)
            except RolecallError as error:
                self._current = self._stopping = None
                await self._show([*self._ended(), ("error", f"the answer was lost from sight: {error}"), ("", "")])
            else:
                await self._delivered(said, final)

    async def _answer(self, said: UserText) -> Event | None:
        answer, event = AnswerText(), None
        async for event in self._front.follow(said.received):
            if event.kind == "delta":
                await self._grow(answer.apply(event))
            elif event.kind == "asked":
                self._question = event.payload
                await self._show([*self._ended(), *_question(event.payload, self.prompt.width)])
            elif event.kind == "answered":
                self._question = {}
                await self._show([("dim", f"  → {plain(event.text) or '–'}")])
            elif event.kind == "started":
                said.role = event.role
                if answer.restart():
                    await self._show([*self._ended(), ("dim", "… begun again")])
            elif event.last:
                await self._finish(said, event, answer)
        return event

    async def _finish(self, said: UserText, event: Event, answer: AnswerText) -> None:
        self._current = self._stopping = None
        self._question = {}
        if event.kind == "cancelled":
            return await self._show([*self._ended(), ("dim", "stopped"), ("", "")])
        if event.kind == "error":
            text = plain(_with_id(event.text, said.received))
            rows = rows_of(text, self.prompt.width)
            return await self._show([*self._ended(), *(("error", row) for row in rows), ("", "")])
        rest = answer.rest(event.text)
        if rest is None:
            await self._show([*self._ended(), ("dim", "… the answer is, in full:")])
        await self._grow(event.text if rest is None else rest)
        notes = [("dim", f"… {note}") for note in answer_notes(self._language, event.payload)]
        await self._show([*self._ended(), *notes, ("", "")])

    async def _answer_beside(self, said: UserText) -> None:
        async for event in self._front.follow(said.received):
            if event.last:
                text = "\n… ".join([event.text, *answer_notes(self._language, event.payload)])
                await self._settle_beside(said, text, "error" if event.kind == "error" else "")
                await self._delivered(said, event)

    # ── showing ─────────────────────────────────────────────────────────────────────────────────

    async def _settle_beside(self, said: UserText, text: str, style: str) -> None:
        """Show question and answer in one block, which may come while another answer is shown."""
        with suppress(ValueError):
            self._waiting.remove(said)
        margin = "  " if self._current else ""
        width = self.prompt.width - len(margin)
        block = [*_asked(said, width), *((style, row) for row in rows_of(plain(text), width))]
        await self._show([*((kind, f"{margin}{row}") for kind, row in block), ("", "")])

    async def _grow(self, text: str) -> None:
        done = self._rows.add(plain(text))
        await self._show([("", row) for row in done])

    async def _show(self, lines: Sequence[Line]) -> None:
        await self.prompt.show(lines, self._rows.growing)

    def _ended(self) -> list[Line]:
        return [("", row) for row in self._rows.end()]

    async def _farewell(self) -> None:
        if self._current is None:
            return
        turn = self._current.received.short_id
        last = "stopped" if self._stopping else f"the answer goes on without you: rolecall logs {turn}"
        await self._show([*self._ended(), ("dim", last)])

    # ── beside ──────────────────────────────────────────────────────────────────────────────────

    async def _stop(self) -> None:
        try:
            await self._front.stop(self._conversation)
        except RolecallError as error:
            self._hint = "  Ctrl-C again leaves"
            await self._show([("error", row) for row in rows_of(f"not stopped: {error}", self.prompt.width)])

    async def _reply(self, question: str, choice: int) -> None:
        try:
            verdict = await self._front.answer(self._conversation, question, choice)
        except RolecallError as error:
            return await self._show([("error", row) for row in rows_of(f"not sent: {error}", self.prompt.width)])
        if verdict != "OK":
            key = "not_asked" if verdict == "FORBIDDEN" else "question_closed"
            await self._show([("dim", say(self._language, key))])

    async def _warn_if_alone(self) -> None:
        try:
            await self._front.check_running()
        except NothingRunning as error:
            rows = rows_of(f"this waits: {error}", self.prompt.width)
            await self._show([("dim", row) for row in rows])
        except RolecallError:
            pass  # to follow the turn is to wait for the server

    async def _delivered(self, said: UserText, final: Event | None) -> None:
        if final is not None and final.kind != "cancelled":
            with suppress(RolecallError):
                await self._front.delivered(said.received)

    def _errand(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._errands.start(work, "rolecall chat errand")


def _asked(said: UserText, width: int) -> list[Line]:
    first, *more = rows_of(plain(said.text), width - 2)
    return [("asked", f"› {first}"), *(("asked", f"  {row}") for row in more)]


def _question(asked: Mapping[str, Any], width: int) -> list[Line]:
    """A question of an agent, with the keys that answer it."""
    rows = [("mark", row) for row in rows_of(plain(f"? {asked['text']}"), width)]
    if asked["style"] == "confirm":
        return [*rows, ("dim", "  y yes · n no")]
    return [*rows, *(("", f"  {number}  {_line(option)}") for number, option in enumerate(asked["options"], 1))]


def _choice(text: str, asked: Mapping[str, Any]) -> int | None:
    """The option that ``text`` chooses; None for what is a message."""
    if asked["style"] == "confirm":
        return {"y": 0, "yes": 0, "n": 1, "no": 1}.get(text.lower())
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 3 else 0
    return number - 1 if 0 < number <= len(asked["options"]) else None


def _place(said: UserText, place: int) -> str:
    return f"waiting, place {place}" if said.received.turn else "sending"


def _line(text: str) -> str:
    return plain(" ".join(text.split()))


def _with_id(text: str, received: Received) -> str:
    return text if received.short_id in text else f"{text} (turn {received.short_id})"
