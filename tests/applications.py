"""Application directories of the tests' own, and the command line run on them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from rolecall.config import APP_MODULES
from tests.command_line import Fork, call, start_verb

AGENTS = '''\
from rolecall import Agent, Context, Envelope, Reject


class ManagerAgent(Agent):
    """Sends everything on."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.via(str(envelope.payload.get("role") or "samplellm"))


class SampleLLMAgent(Agent):
    """Answers with its model."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        if envelope.text == "bury me":
            raise Reject("it was asked for")
        return envelope.reply(await ctx.stream(ctx.model, (), envelope.text))
'''

CONFIG = """\
from agents.all import ManagerAgent, SampleLLMAgent
from rolecall import Config, Role

config = Config(
    roles=(Role(ManagerAgent), Role(SampleLLMAgent, instances=2, models=("echo@test",))),
    appendfsync="everysec",
    heartbeat_seconds=0.5,
)
"""


def make_application(directory: Path, *, config: str = CONFIG, agents: str = AGENTS, dotenv: str = "") -> Path:
    """A deployment in ``directory``: a manager and two instances of samplellm that answer as ``echo@test``."""
    (directory / "agents").mkdir(parents=True, exist_ok=True)
    (directory / "agents" / "__init__.py").touch()
    (directory / "agents" / "all.py").write_text(agents)
    (directory / "config.py").write_text(config)
    if dotenv:
        (directory / ".env").write_text(dotenv)
        (directory / ".env").chmod(0o600)
    return directory


def run_rolecall(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with ``environment`` and nothing else set; ends within 60 s."""
    return call(arguments, clean_environment(environment), cwd)


@contextmanager
def running(directory: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Fork]:
    """``rolecall up`` at work on ``directory`` once it is up, or another long verb; stopped by SIGTERM at the end."""
    verb = arguments or ("up", "--no-chat")
    with tempfile.NamedTemporaryFile() as said, open(os.devnull, "wb") as nowhere:
        process = start_verb([*verb, "--app", directory], clean_environment(environment), said, nowhere)
        try:
            if not arguments:
                _wait_until_up(process, Path(said.name))
            yield process
        finally:
            process.terminate()
            process.wait(30)


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a process needs to run at all, and ``more``."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return {**kept, **(more or {})}


@contextmanager
def own_modules() -> Iterator[None]:
    """Lets ``load`` import an application here: ``config`` and ``agents`` of others are out of the way meanwhile."""
    path, before = list(sys.path), _app_modules()
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in _app_modules():
            with suppress(KeyError):
                del sys.modules[name]
        sys.modules.update(before)


def _wait_until_up(process: Fork, said: Path) -> None:
    while "\ntalk " not in said.read_text():  # the last line of the welcome
        assert process.poll() is None, f"rolecall up ended with status {process.returncode}"
        time.sleep(0.02)


def _app_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in APP_MODULES}
