"""The line one types in, with rows of text above it; all that knows prompt_toolkit. Import it where it is used."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

Line = tuple[str, str]
"""A style (``asked``, ``dim``, ``error`` or nothing) and a row of text."""
MARK = "› "
STYLES = {"asked": "bold", "dim": "ansibrightblack", "error": "ansired", "mark": "ansicyan bold"}
REFRESH_SECONDS = 0.5


class Prompt:
    """A prompt at the foot of the terminal that stays while text comes in above it.

    ``on_text`` is given each line entered; ``on_interrupt`` is told of Ctrl-C, and whether something stood in the
    line; ``status`` says what to show dimly right above the line. ``suspends``: Ctrl-Z hands the terminal back to the
    shell until `fg`; else it does nothing, for a process that others rely on.
    """

    def __init__(
        self,
        on_text: Callable[[str], None],
        on_interrupt: Callable[[bool], None],
        status: Callable[[], Sequence[str]],
        words: Sequence[tuple[str, str]] = (),
        history: Path | None = None,
        suspends: bool = False,
    ) -> None:
        self._on_text = on_text
        self._suspends = suspends
        self._on_interrupt = on_interrupt
        self._status = status
        self._growing = ""
        self._input = _AlwaysRaw(sys.stdin)
        self._session: PromptSession[str] = PromptSession(
            self._above,
            input=self._input,
            completer=_Words(words),
            complete_while_typing=Condition(self._typing_command),
            history=_history(history),
            key_bindings=self._keys(),
            style=Style.from_dict(STYLES),
            refresh_interval=REFRESH_SECONDS,
            erase_when_done=True,
        )
        # One prompt for the whole chat: between two of them the terminal would be nobody's.
        self._session.default_buffer.accept_handler = self._accepted

    @property
    def width(self) -> int:
        """Cells in a row."""
        return self._session.app.output.get_size().columns

    async def run(self) -> None:
        """Take lines until ``leave``."""
        with patch_stdout(), _log_above():
            await self._session.prompt_async(handle_sigint=False)

    def leave(self) -> None:
        """End ``run``."""
        if self._session.app.is_running and not self._session.app.is_done:
            self._session.app.exit(result="")

    def clear(self) -> None:
        """Empty the line."""
        self._session.default_buffer.reset()

    async def show(self, lines: Sequence[Line], growing: str = "") -> None:
        """Put ``lines`` above the prompt for good, and ``growing`` below them for as long as nothing else is."""
        if not lines:
            self._growing = growing
            return self._session.app.invalidate()
        async with in_terminal():
            self._session.app.print_text([(f"class:{style}" if style else "", f"{text}\n") for style, text in lines])
            self._growing = growing

    def _above(self) -> StyleAndTextTuples:
        rows: StyleAndTextTuples = [("", f"{self._growing}\n")] if self._growing else []
        rows += [("class:dim", f"{text}\n") for text in self._status()]
        return [*rows, ("class:mark", MARK)]

    def _accepted(self, buffer: Buffer) -> bool:
        buffer.text = buffer.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # keys of no UTF-8
        self._on_text(buffer.text)
        return False

    def _typing_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")

    async def _suspend(self) -> None:
        async with in_terminal():
            with self._input.cooked():
                os.kill(0, signal.SIGTSTP)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        def interrupt(event: KeyPressEvent) -> None:
            self._on_interrupt(bool(event.current_buffer.text))

        @keys.add("c-d", filter=Condition(lambda: not self._session.default_buffer.text))
        def leave(event: KeyPressEvent) -> None:
            self.leave()

        @keys.add("c-z")
        def suspend(event: KeyPressEvent) -> None:
            if self._suspends:
                event.app.create_background_task(self._suspend())

        @keys.add("escape", "enter")
        def newline(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return keys


class _AlwaysRaw(Vt100Input):
    """Input that stays raw while text is written above the prompt: else a Ctrl-C just then would be a signal to the
    process, not a key to the prompt."""

    def cooked_mode(self) -> AbstractContextManager[None]:
        return nullcontext()

    def cooked(self) -> AbstractContextManager[None]:
        """The terminal as the shell expects it."""
        return super().cooked_mode()


class _Words(Completer):
    """Completes a first word that begins with a slash."""

    def __init__(self, words: Sequence[tuple[str, str]]) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/"):
            for word, meaning in self._words:
                if word.startswith(typed):
                    yield Completion(word, -len(typed), display_meta=meaning)


def _history(path: Path | None) -> History:
    """Earlier lines, in a file that only its owner can read; in memory where no file can be kept."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


@contextmanager
def _log_above() -> Iterator[None]:
    """Let this process's log appear above the prompt as well: its handlers hold the stderr of before."""
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.__stderr__)
