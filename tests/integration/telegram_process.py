"""The Telegram front end as users run it: the real command line in processes of its own, on the local Telegram."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.applications import clean_environment, make_application
from tests.command_line import Fork, start_verb
from tests.telegram.api import TelegramApi
from tests.waiting import wait_until

SERVED = "is served"


@dataclass
class Process:
    """One `rolecall …` process; what it writes is in ``out`` and ``err``."""

    fork: Fork
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """What it told operators so far."""
        return self.out.read_text(encoding="utf-8")

    @property
    def logged(self) -> str:
        """Its log so far."""
        return self.err.read_text(encoding="utf-8")

    @property
    def ended(self) -> bool:
        return self.fork.poll() is not None

    async def says(self, text: str, seconds: float = 60) -> None:
        """Wait until it has told operators ``text``."""
        try:
            await wait_until(lambda: text in self.said, seconds=seconds)
        except AssertionError:
            raise AssertionError(f"it did not say {text!r}:\n{self.said}\n{self.logged[-3000:]}") from None

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.fork.kill()
        self.fork.wait()

    def freeze(self) -> None:
        self.fork.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.fork.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """End it as an operator does; its exit status."""
        if not self.ended:
            self.thaw()
            self.fork.terminate()
        return self.fork.wait(timeout=30)


@dataclass
class Place:
    """An application directory whose processes serve the bot of ``api``."""

    directory: Path
    api: TelegramApi
    settings: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    def start(self, *verb: str, token: str | None = None, **settings: str) -> Process:
        """`rolecall VERB` with the bot's token, and ``settings`` in its environment."""
        number = len(self.processes)
        out, err = self.directory / f"out{number}", self.directory / f"err{number}"
        told = {
            "TELEGRAM_BOT_TOKEN": self.api.token if token is None else token, "TELEGRAM_API_URL": self.api.url,
            "TELEGRAM_ALLOWED": "*", "TELEGRAM_PER_MINUTE": "100000", "APPENDFSYNC": "everysec",
        }  # fmt: skip
        environment = {name: value for name, value in {**told, **self.settings, **settings}.items() if value}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            fork = start_verb([*verb, "--app", self.directory], clean_environment(environment), stdout, stderr)
        self.processes.append(Process(fork, out, err))
        return self.processes[-1]

    async def serving(self, seconds: float = 60) -> None:
        """Wait until one of the processes serves."""
        await wait_until(
            lambda: any(SERVED in process.said for process in self.processes if not process.ended), seconds=seconds
        )

    async def telegram(self, **settings: str) -> Process:
        """`rolecall telegram`, once it serves."""
        process = self.start("telegram", **settings)
        await process.says(SERVED)
        return process

    async def up(self, **settings: str) -> Process:
        """`rolecall up`, once it serves and answers."""
        process = self.start("up", "--no-chat", **settings)
        await process.says(SERVED)
        await process.says("talk ")
        return process


@contextmanager
def telegram_place(directory: Path, api: TelegramApi, **settings: str) -> Iterator[Place]:
    """A place in ``directory``; whatever was started there is ended."""
    place = Place(make_application(directory), api, settings)
    try:
        yield place
    finally:
        for process in place.processes:
            if not process.ended:
                process.thaw()
                process.fork.terminate()
        for process in place.processes:
            try:
                process.fork.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.fork.kill()
                raise
