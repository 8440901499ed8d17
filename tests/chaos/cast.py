"""The processes of a chaos run, and what is done to them: killed, frozen past the lease, started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.command_line import Fork, start_module
from tests.valkey import ValkeyProcess

ROOT = Path(__file__).parents[2]
FROZEN_SECONDS = (2.5, 4.0)
"""How long a frozen process sleeps: longer than the lease."""
UP_SECONDS = 2.0
"""After how long a silent process is taken to be at work."""


class ChaosServer(ValkeyProcess):
    """The server, which keeps every write it acknowledged."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(directory, "--appendfsync", "always", durable=True, port=port)

    def restart(self, *, gently: bool) -> None:
        """End it, by SIGTERM or at once, and start it again on its data a moment later."""
        if gently and self._process is not None:
            self._process.terminate()
            self._process.wait()
        self.kill()
        time.sleep(random.uniform(0.2, 0.8))
        self.start()


@dataclass
class Player:
    """One process with a part: it is started again whenever it has ended, unless it ended as it should."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    finite: bool = False
    process: subprocess.Popen[bytes] | Fork | None = None
    frozen_until: float = 0.0
    _log_start: int = 0
    _started: float = 0.0

    def start(self) -> None:
        """Start it; what it says goes to its log."""
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = self.started(log)

    def started(self, log: IO[bytes]) -> subprocess.Popen[bytes] | Fork:
        """The process, which has just started."""
        return start_module(self.argv[0], self.argv[1:], self.environment, ROOT, log)

    @property
    def alive(self) -> bool:
        """Whether it runs, be it frozen."""
        return self.process is not None and self.process.poll() is None

    @property
    def up(self) -> bool:
        """Whether it lives and has begun its part: by what it says in its log, or after a while."""
        spoke = self.log.stat().st_size > self._log_start
        return self.alive and (spoke or time.monotonic() - self._started > UP_SECONDS)

    @property
    def done(self) -> bool:
        """Whether it has come to its own good end."""
        return self.finite and self.process is not None and self.process.poll() == 0

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.process is not None and self.alive:
            self.process.send_signal(number)

    def freeze(self, seconds: float) -> None:
        """Stop it where it stands."""
        self.send(signal.SIGSTOP)
        self.frozen_until = time.monotonic() + seconds

    def thaw(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)
        self.frozen_until = 0.0

    def ended_well(self, seconds: float = 15.0) -> bool:
        """Ask it to end; whether it did so in order. One that was only starting is ended by the signal itself."""
        self.thaw()
        self.send(signal.SIGTERM)
        assert self.process is not None
        try:
            return self.process.wait(seconds) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Cast:
    """All players; ``strike`` hurts a random one, ``revive`` sets right what can be."""

    players: list[Player]
    dice: random.Random
    freezes: float = 0.3
    struck: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Start everyone."""
        for player in self.players:
            player.start()

    def strike(self) -> None:
        """Kill one that is up, or freeze it past its lease."""
        victims = [player for player in self.players if player.up and not player.frozen_until]
        if not victims:
            return
        victim = self.dice.choice(victims)
        if self.dice.random() < self.freezes:
            victim.freeze(self.dice.uniform(*FROZEN_SECONDS))
            self.struck["freezes"] += 1
        else:
            victim.kill()
            self.struck["kills"] += 1

    def revive(self) -> None:
        """Wake who slept long enough, start again who is dead."""
        for player in self.players:
            if player.frozen_until and time.monotonic() > player.frozen_until:
                player.thaw()
            if not player.alive and not player.done:
                player.start()

    def thaw(self) -> None:
        """Wake everyone."""
        for player in self.players:
            player.thaw()

    def kill(self) -> None:
        """End everyone at once."""
        for player in self.players:
            player.kill()


def environment(url: str, clocks: Mapping[str, str]) -> dict[str, str]:
    """The environment of the players: nothing of the caller's but what Python needs."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV")}
    path = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    return {**kept, "PYTHONPATH": path, "REDIS_URL": url, "TZ": "UTC", "LOG_LEVEL": "INFO", **clocks}
