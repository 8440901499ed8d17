"""What tests share: one real server for the session, emptied before each test, and a bus on it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers

from rolecall.bus.bus import Bus
from rolecall.redis.server import RedisServer
from rolecall.settings import Settings
from rolecall.worker.runtime import tune_garbage_collector
from tests.valkey import ValkeyProcess

if TYPE_CHECKING:
    from tests.telegram.api import TelegramApi


def pytest_configure() -> None:
    """The suite tries the same examples each time; ``ROLECALL_RANDOM=1`` looks for new ones. Ctrl-C reaches what it
    starts also where a shell runs it in the background, which ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("same", derandomize=True, database=None)
    if "ROLECALL_RANDOM" not in os.environ:
        hypothesis.settings.load_profile("same")
        # Hypothesis also draws constants of whatever modules a process has imported: other examples in each.
        providers._get_local_constants = lambda: providers._local_constants
    tune_garbage_collector()


def pytest_collection_finish() -> None:
    tune_garbage_collector()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """A test process cannot send half a surrogate pair, and the product is free to log one."""
    return _sendable((yield))


def _sendable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _sendable(one) for name, one in value.items()}
    return type(value)(map(_sendable, value)) if isinstance(value, list | tuple) else value


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The address of the session's server. It holds what earlier tests left: use ``server`` for an empty one."""
    with tempfile.TemporaryDirectory(prefix="rolecall") as directory:
        process = ValkeyProcess(Path(directory))
        process.start()
        yield process.url
        process.kill()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A new directory with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="rc", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
async def api() -> AsyncIterator[TelegramApi]:
    """A Telegram on this machine."""
    from tests.telegram.api import TelegramApi  # most tests need none

    async with TelegramApi() as api:
        yield api


@pytest.fixture
async def server(server_url: str) -> AsyncIterator[RedisServer]:
    """A connection to the session's server, which is empty and without a memory limit."""
    server = RedisServer(server_url)
    await server.call("CONFIG", "SET", "maxmemory", 0)
    await server.call("FLUSHALL")
    yield server
    await server.aclose()


@pytest.fixture
def settings() -> Settings:
    """The settings as they come. A test that needs others defines its own fixture of this name."""
    return Settings()


@pytest.fixture
def bus(server: RedisServer, settings: Settings) -> Bus:
    """The bus as the process ``host:1~aaaaaa`` sees it."""
    return Bus(server, settings, "host:1~aaaaaa")


@pytest.fixture
def other(server: RedisServer, settings: Settings) -> Bus:
    """The bus as another process sees it."""
    return Bus(server, settings, "host:2~bbbbbb")
