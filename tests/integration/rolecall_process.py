"""The real command line in processes of its own, on a copy of this application that answers without a model."""

from __future__ import annotations

import codecs
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.command_line import ROLECALL as COMMAND
from tests.command_line import VERBS, Fork, call, needs_own_python

ROOT = Path(__file__).parents[2]
ROLECALL = str(COMMAND)
ON_A_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"
PARTS = re.compile(r"\x1b(?:\[([0-9;?]*)([A-Za-z])|[()].|[=>])|([^\x1b])", re.DOTALL)
UNFINISHED = re.compile(r"\x1b[^A-Za-z=>]*\Z")
CONFIG = """
import time

from agents.command import CommandAgent
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall import Agent, Config, Context, Envelope, Reject, Role

class BrokenAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        raise Reject("it is broken")

class CutAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply("Once upon a", finish="length")

class BlockAgent(Agent):
    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        time.sleep(60)
        return envelope.reply("never")

config = Config(
    roles=(
        Role(ManagerAgent), Role(CommandAgent), Role(SampleLLMAgent, instances=2), Role(BrokenAgent), Role(CutAgent),
        Role(BlockAgent),
    )
)
"""


def make_application(directory: Path) -> Path:
    """An application in ``directory``: manager, command, samplellm, and broken, which always fails."""
    shutil.copytree(ROOT / "agents", directory / "agents")
    (directory / "config.py").write_text(CONFIG, encoding="utf-8")
    (directory / "Makefile").write_text(f'run:\n\t@"{ROLECALL}" up --foreground\n', encoding="utf-8")
    return directory


def environment(**settings: str) -> dict[str, str]:
    """The environment of the processes: echo@test answers, in 0.6 s and six pieces if not told otherwise."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TZ") if name in os.environ}
    given = {"GEN_MODEL": "echo@test", "ECHO_DELAY": "0.6", "ECHO_DELTAS": "6", "APPENDFSYNC": "everysec"}
    return {
        **kept,
        **given,
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "LOGNAME": "kim",
        **settings,
    }


def rolecall(directory: Path, *arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """One call of the command line, without a terminal."""
    return call(arguments, environment(**settings), directory, stdin=stdin, seconds=30)


class Screen:
    """What a person sees, scrolled-away rows included: the text and the relative cursor moves that a prompt writes."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    @property
    def text(self) -> str:
        """All rows, each without the blanks at its end."""
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def write(self, written: str) -> None:
        """Show ``written``; an escape sequence must be whole."""
        for count, letter, char in PARTS.findall(written):
            if letter:
                self._steer(letter, int(count) if count.isdigit() else 0)
            elif char == "\n":
                self._move(self._row + 1, self._column)
            elif char in "\r\b":
                self._move(self._row, 0 if char == "\r" else self._column - 1)
            elif char.isprintable():
                self._put(char)

    def _steer(self, letter: str, count: int) -> None:
        down, right = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}.get(letter, (0, 0))
        self._move(self._row + down * max(1, count), self._column + right * max(1, count))
        if letter in "JK" and count == 0:
            del self._rows[self._row][self._column :]
        if letter == "J" and count == 0:
            del self._rows[self._row + 1 :]

    def _move(self, row: int, column: int) -> None:
        self._row, self._column = max(0, row), max(0, column)
        self._rows += ([] for _ in range(self._row + 1 - len(self._rows)))

    def _put(self, char: str) -> None:
        row = self._rows[self._row]
        row += [" "] * (self._column + 1 - len(row))
        row[self._column] = char
        self._column += 1


class Terminal:
    """A terminal with a program in it."""

    def __init__(self, directory: Path, *command: str, **settings: str) -> None:
        import fcntl
        import pty
        import termios

        self.screen = Screen()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
        self.process = _started_on(slave, directory, command, environment(**settings))
        os.close(slave)

    def send(self, keys: str | bytes) -> None:
        """Type ``keys``."""
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def wait_for(self, *texts: str, poke: str = "", seconds: float = 15) -> None:
        """Return once all ``texts`` are seen, in this order; ``poke`` is typed now and then until they are."""
        give_up, poked = time.monotonic() + seconds, 0.0
        while not _in_order(texts, self.screen.text):
            assert time.monotonic() < give_up, f"{texts} did not come:\n{self.screen.text}"
            if poke and time.monotonic() > poked + 0.5:
                poked = time.monotonic()
                self.send(poke)
            assert self._read(), f"it ended without {texts}:\n{self.screen.text}"

    def end(self, seconds: float = 20) -> int:
        """Wait until the program has ended by itself; returns its exit status."""
        give_up = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < give_up, f"it goes on:\n{self.screen.text}"
        return self.process.wait(timeout=5)

    def close(self) -> None:
        """End the program if it still runs."""
        self.process.terminate()
        try:
            self.end()
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        written = self._unread + self._decoder.decode(data)
        unfinished = UNFINISHED.search(written)
        end = unfinished.start() if unfinished else len(written)
        self._unread = written[end:]
        self.screen.write(written[:end])
        return bool(data)


def _started_on(
    terminal: int, directory: Path, command: Sequence[str], environment: Mapping[str, str]
) -> Fork | subprocess.Popen[bytes]:
    if command[0] == ROLECALL and not needs_own_python(environment):
        with os.fdopen(os.dup(terminal), "r+b", buffering=0) as tty:
            return Fork(VERBS, list(command), environment, directory, (tty, tty, tty))
    on_it = [sys.executable, "-c", ON_A_TERMINAL, *command]
    return subprocess.Popen(on_it, cwd=directory, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)


def _in_order(texts: Sequence[str], shown: str) -> bool:
    at = 0
    for text in texts:
        at = shown.find(text, at) + len(text)
        if at < len(text):
            return False
    return True
