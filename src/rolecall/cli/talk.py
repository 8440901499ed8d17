"""`rolecall chat`, `rolecall ask` and `rolecall notify`: talking to what runs, for people and for scripts."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rolecall.background import finish
from rolecall.bus.commands import find_command
from rolecall.bus.conversation import has_begun
from rolecall.bus.conversation import notify as notify_conversation
from rolecall.bus.events import AnswerText, Event
from rolecall.bus.process.processes import process_name
from rolecall.bus.wakeups import Wakeups
from rolecall.cli import STOPPED
from rolecall.cli.runner import load_quietly, stop_requested, until_stopped
from rolecall.client import FRONT, Assistant, TurnRef
from rolecall.config import Application
from rolecall.environment import user_language
from rolecall.errors import ConfigError, EnvelopeTooLarge, Refused, RolecallError, ServerUnavailable
from rolecall.frontends.terminal.text import plain
from rolecall.frontends.texts import say
from rolecall.session import Session, open_session

if TYPE_CHECKING:
    from rich.console import Console

    from rolecall.frontends.terminal.terminal import OpenQuestions

T = TypeVar("T")
STOP_SECONDS = 5.0
"""How long the server may take to stop the turn of someone who leaves."""
NOTIFIED = {
    "OK": "sent to {conversation}",
    "DUP": "a notice with the key {key} was sent before",
    "CONFLICT": "not sent: another text was sent with the key {key}",
    "BUSY": "not sent: the server has no memory left",
}


@dataclass(frozen=True)
class Question:
    """What `rolecall ask` was asked to ask; ``timeout`` in seconds, None for as long as it takes."""

    text: str
    conversation: str = ""
    role: str = ""
    model: str = ""
    priority: int | None = None
    timeout: float | None = None


class AskResult(msgspec.Struct, frozen=True):
    """What `rolecall ask --json` prints. ``kind`` is final, error, cancelled or refused."""

    conversation: str
    turn: str
    short_id: str
    kind: str
    text: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    finish: str = ""

    def print(self, as_json: bool, answer: AnswerText) -> int:
        """Answers and JSON on stdout, what went wrong on stderr; returns the exit status."""
        if as_json:
            print(msgspec.json.encode(self).decode())
        if self.kind == "final":
            if not as_json:
                _print_rest(self.text, answer)
                if self.finish == "length":
                    print(f"rolecall: {say(user_language(), 'answer_cut')}", file=sys.stderr)
            return 0
        if answer.text:
            print()
        turn = f" (turn {self.short_id})" if self.turn and self.short_id not in self.text else ""
        print(f"rolecall: {plain(self.text)}{turn}", file=sys.stderr)
        return 1


async def ask(app_dir: Path | None, question: Question, *, as_json: bool) -> int:
    """Ask, print the answer, return the exit status. Ctrl-C and the timeout stop the turn.

    Raises NothingRunning, ServerUnavailable, and ConfigError for a role or model that is not configured.
    """
    application = load_quietly(app_dir)
    _check(question, application)
    streaming = sys.stdout.isatty() and not as_json
    async with stop_requested(status=STOPPED) as wanted, _at_the_bus(application) as assistant:
        answer = AnswerText()
        asking = asyncio.create_task(_ask(assistant, question, answer, streaming), name="rolecall ask")
        outcome = await until_stopped(asking, wanted)
        if outcome is None:
            print("rolecall: stopped", file=sys.stderr)
            return STOPPED
        return outcome.print(as_json, answer)


async def chat(app_dir: Path | None, *, conversation: str, name: str) -> int:
    """Chat at the prompt; without a terminal answer each line of stdin on stdout. Returns the exit status."""
    application = load_quietly(app_dir)
    conversation = conversation or f"terminal:{name or login_name()}"
    async with stop_requested() as wanted, _at_the_bus(application) as assistant:
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            work = prompt(assistant.session, assistant.wakeups, conversation)
        else:
            work = _answer_lines(assistant, conversation)
        return await until_stopped(asyncio.create_task(work, name="rolecall chat"), wanted) or 0


async def prompt(
    session: Session, wakeups: Wakeups, conversation: str = "", unanswered: OpenQuestions | None = None
) -> int:
    """The chat prompt on ``session``, with its roles as completions and its file of earlier lines, until the user
    leaves; returns the exit status. ``unanswered`` keeps its questions for a process that starts again. Raises
    MissingExtra without prompt_toolkit."""
    from rolecall.frontends.terminal.terminal import chat as chat_here

    application = session.application
    words = [
        (f"/{role.name}", "ask this role once: put the text behind it") for role in application.roles if role.models
    ]
    words += [(role.match, f"ask {role.name}") for role in application.roles if role.match]
    conversation = conversation or f"terminal:{login_name()}"
    history = application.state_dir / "chat_history"
    await chat_here(
        session.bus, wakeups, conversation=conversation, words=words, history=history,
        language=user_language(), unanswered=unanswered,
    )  # fmt: skip
    return 0


def text_of(argument: str) -> str:
    """``argument``, or all of stdin for ``-``. Raises ConfigError when there is nothing in it."""
    text = sys.stdin.buffer.read().decode("utf-8", "replace") if argument == "-" else argument
    if not text.strip():
        raise ConfigError("TEXT is empty: there is nothing to send")
    return text


def login_name() -> str:
    """Who is logged in, or ``me`` where the system does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "me"


@asynccontextmanager
async def _at_the_bus(application: Application) -> AsyncIterator[Assistant]:
    """What runs, as the terminal uses it. Raises NothingRunning or ServerUnavailable."""
    async with open_session(application, process_name(), start=False) as session, session.listening() as wakeups:
        assistant = Assistant(session, wakeups, "terminal")
        await assistant.check_running()
        yield assistant


def _check(question: Question, application: Application) -> None:
    if question.role and application.role(question.role) is None:
        known = ", ".join(role.name for role in application.roles)
        raise ConfigError(f"--role {question.role}: there is no such role; there are {known}")
    if question.model and question.model not in application.model_names:
        known = ", ".join(sorted(application.model_names)) or "none"
        raise ConfigError(f"--model {question.model}: no role is configured with it; there are {known}")


async def _ask(assistant: Assistant, question: Question, answer: AnswerText, streaming: bool) -> AskResult:
    began = time.monotonic()
    conversation = question.conversation or f"terminal:ask-{secrets.token_hex(4)}"
    command = find_command(question.text)
    if command is not None and command.lane == "front":
        from rolecall.frontends.front import Front

        received = await Front(assistant.session.bus, assistant.wakeups, "terminal").receive(
            conversation, question.text, language=user_language()
        )
        return AskResult(conversation, "", "", "final", received.reply)
    try:
        ref = await assistant.send(
            question.text, conversation=conversation, role=question.role, model=question.model,
            priority=question.priority, language=user_language(),
        )  # fmt: skip
    except Refused as refused:
        return AskResult(conversation, "", "", "refused", say(user_language(), refused.code.lower()))
    except RolecallError as error:
        if type(error) not in (RolecallError, EnvelopeTooLarge):
            raise
        return AskResult(conversation, "", "", "refused", f"I couldn't accept this: {error}.")
    event = await _final_event(assistant, ref, question.timeout, answer if streaming else None)
    if event.kind != "cancelled":
        await assistant.delivered(ref)
    return AskResult(
        conversation,
        ref.turn,
        ref.id,
        event.kind,
        event.text,
        str(event.payload.get("model") or ""),
        event.payload.get("tokens_in", 0),
        event.payload.get("tokens_out", 0),
        round(time.monotonic() - began, 3),
        str(event.payload.get("finish") or ""),
    )


async def _final_event(assistant: Assistant, ref: TurnRef, seconds: float | None, answer: AnswerText | None) -> Event:
    """The turn's last event. The turn is cancelled when time is up or nobody waits any more."""
    try:
        async with asyncio.timeout(seconds):
            return await _followed(assistant, ref, answer)
    except TimeoutError:
        reason = f"no answer within {seconds:g} s, so it was stopped"
        await assistant.cancel(ref.conversation, ref.turn, reason=reason)
        return Event("cancelled", "", ref.turn, reason)
    except asyncio.CancelledError:
        await finish(assistant.cancel(ref.conversation, ref.turn), "stopping the turn", STOP_SECONDS)
        raise


async def _followed(assistant: Assistant, ref: TurnRef, answer: AnswerText | None) -> Event:
    """The last event; deltas go to stdout as they arrive when ``answer`` keeps count of them."""
    async with aclosing(assistant.follow(ref.conversation, ref.turn, ref.after)) as events:
        async for event in events:
            if event.last:
                return event
            if answer is not None and event.kind == "delta":
                print(plain(answer.apply(event)), end="", flush=True)
            elif answer is not None and event.kind == "started" and answer.restart():
                print("\n… starting over", flush=True)
    raise ServerUnavailable(f"the events of turn {ref.id} ended early")


async def notify(
    app_dir: Path | None, conversation: str, text: str, console: Console, *, key: str = "", remember: bool = True
) -> int:
    """Send a notice; exit status 1 if it was not accepted. ``text`` is as text_of takes it. Raises ConfigError for a
    conversation that no front end or program has."""
    from rolecall.cli.output import print_lines, visiting

    text = text_of(text).strip()
    async with visiting(app_dir) as session:
        front = session.application.front_of(conversation)
        if not (front or await has_begun(session.bus, conversation)):
            raise ConfigError(
                f"{conversation[:60]!r} belongs to no front end: expected an ID such as telegram:42 or terminal:ann, "
                "or one that `rolecall logs` lists"
            )
        verdict = await notify_conversation(
            session.bus, conversation, text, idempotency=key, front=front or FRONT, remember=remember
        )
    print_lines(console, [NOTIFIED[verdict].format(conversation=conversation, key=key)])
    return 0 if verdict in ("OK", "DUP") else 1


def _print_rest(text: str, answer: AnswerText) -> None:
    if not answer.text:
        return print(plain(text) if sys.stdout.isatty() else text)
    rest = answer.rest(text)
    print(plain(rest) if rest is not None else f"\n… the answer is, in full:\n{plain(text)}")


async def _answer_lines(assistant: Assistant, conversation: str) -> int:
    """Answer each line of stdin on stdout, in order; returns the exit status, 1 when one went wrong."""
    status, lines = 0, _stdin_lines()
    while (line := await lines.get()) is not None:
        if line.strip():
            outcome = await _ask(assistant, Question(line.strip(), conversation), AnswerText(), False)
            status = max(status, outcome.print(False, AnswerText()))
            sys.stdout.flush()
    return status


def _stdin_lines() -> asyncio.Queue[str | None]:
    """The lines of stdin as they come, None at its end. A thread of its own reads them, for no loop can wait for a
    file, and nothing waits for the thread at the end."""
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def read() -> None:
        for raw in sys.stdin.buffer:
            loop.call_soon_threadsafe(lines.put_nowait, raw.decode("utf-8", "replace"))
        loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="rolecall stdin", daemon=True).start()
    return lines
