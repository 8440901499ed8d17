"""docs/tutorial.md: every command is run, in order, and prints what the page shows; Telegram is the local one.

Only the installation is left out, which `python -m tests.package` does.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.applications import clean_environment
from tests.telegram.api import TelegramApi
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)
STAYS = "rolecall up"
"""Commands that begin so keep running, until the next of them."""
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is needed")


def matches(shown: str, said: str) -> bool:
    """Whether ``said`` is what the page shows: ``…`` is any text in a line, or any lines when it has its own."""
    parts = [re.escape(line.rstrip()).replace("…", ".*") for line in shown.strip().splitlines()]
    pattern = "".join("(?:.*\n)*" if part == ".*" else f"{part} *\n" for part in parts)
    return re.fullmatch(pattern, f"{said.strip()}\n") is not None


@dataclass
class Reader:
    """Somebody who follows the page, with a terminal, an editor and Telegram."""

    directory: Path
    api: TelegramApi
    up: subprocess.Popen[bytes] | None = None
    ups: int = 0

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        told = {"PATH": path, "TELEGRAM_API_URL": self.api.url, "HTTP_PORT": "0", "COLUMNS": "200", "LANG": "C.UTF-8"}
        # The model answers only in the first of the runs; loading it again would only take time.
        return clean_environment(told if self.ups < 2 else {**told, "GEN_MODEL": "echo@test"})

    @property
    def output(self) -> Path:
        return self.directory.parent / f"up{self.ups}"

    async def follow(self, kind: str, title: str, text: str) -> None:
        """Do what one block says."""
        if kind == "console":
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                await self.type(command, shown)
        elif title == "Telegram":
            await self.chat(re.findall(r"^(you|bot): (.*)$", text, re.MULTILINE))
        elif title == "config.py":
            self.configure(*text.splitlines())
        else:
            (self.directory / title).write_text(text.replace("123456789:your-token", self.api.token))

    async def type(self, command: str, shown: str) -> None:
        """One command at the prompt."""
        if command.startswith("cd "):
            self.directory /= command.removeprefix("cd ")
        elif command.startswith(STAYS):
            await self.start(command, shown)
        else:
            said = await asyncio.to_thread(self.run, command)
            assert matches(shown, said), f"{command} printed:\n{said}\nthe page shows:\n{shown}"

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environment, capture_output=True, text=True,
            timeout=110, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    async def start(self, command: str, shown: str) -> None:
        """What runs in the first terminal, instead of what ran there."""
        await self.stop()
        self.ups += 1
        with self.output.open("wb") as out, self.output.with_suffix(".err").open("wb") as err:
            self.up = subprocess.Popen(
                shlex.split(command), cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err,
            )  # fmt: skip
        try:
            await wait_until(lambda: "\ntalk " in self.said() and matches(shown, self.said()), seconds=60)
        except AssertionError:
            raise AssertionError(f"{command} printed:\n{self.said()}\nthe page shows:\n{shown}") from None

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    async def stop(self) -> None:
        if self.up is not None:
            self.up.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(self.up.wait, 40) == 0, self.said()
            self.up = None

    async def chat(self, lines: list[tuple[str, str]]) -> None:
        """A conversation in Telegram. /start brings the code of the link that was printed."""
        me = self.api.user(7, name="Ada")
        for (who, text), (answerer, shown) in zip(lines[::2], lines[1::2], strict=True):
            assert (who, answerer) == ("you", "bot")
            if text == "/start":
                await wait_until(lambda: "?start=" in self.said(), seconds=30)
                (code,) = re.findall(r"\?start=(\S+)", self.said())
                text = f"/start {code}"
            before = len(self.api.chat(7).answers) if me.id in self.api.world.chats else 0
            me.write(text)
            await self.api.wait_for(
                lambda before=before, shown=shown: (said := self.answer(before)) and matches(shown, said), seconds=60,
                what=f"{text!r} is answered with {shown!r}",
            )  # fmt: skip

    def answer(self, number: int) -> str:
        answers = self.api.chat(7).answers
        return answers[number].text if len(answers) > number else ""

    def configure(self, imported: str, role: str) -> None:
        """The two lines of the page in config.py."""
        file = self.directory / "config.py"
        lines = file.read_text(encoding="utf-8").splitlines()
        last = max(number for number, line in enumerate(lines) if line.lstrip().startswith("Role("))
        lines.insert(last + 1, role)
        lines.insert(next(number for number, line in enumerate(lines) if line.startswith("from agents.")), imported)
        file.write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    async with TelegramApi() as api:
        reader = Reader(tmp_path, api)
        try:
            yield reader
        finally:
            if reader.up is not None:
                reader.up.terminate()
                await asyncio.to_thread(reader.up.wait, 40)


@pytest.mark.timeout(300)
async def test_everything_on_the_page_works_as_it_is_shown(reader: Reader) -> None:
    assert len(BLOCKS) > 10
    for kind, title, text in BLOCKS:
        await reader.follow(kind, title, text)


@pytest.mark.parametrize(
    ("shown", "said", "is_it"),
    [
        ("a …\n…\nz", "a b\nc\nd\nz", True),
        ("a", "b", False),
        ("a\n…\nz", "a\nz", True),
        ("a …", "a b\nc", False),
        ("…", "", True),
    ],
)
def test_an_ellipsis_is_any_text_and_nothing_else_is(shown: str, said: str, is_it: bool) -> None:
    assert matches(shown, said) == is_it
