"""Running a verb: what other tasks do to the event loop does not end it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rolecall.cli.runner import run_loop, stop_requested


async def _exit() -> None:
    sys.exit(3)


async def _stop_the_loop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize("does", [_exit, _stop_the_loop])
def test_a_task_that_ends_the_loop_does_not_end_the_verb(does: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def verb() -> int:
        async with stop_requested():
            other = asyncio.create_task(does())
            await asyncio.sleep(0.05)
            assert other.done()
            await asyncio.sleep(0.05)
        return 7

    assert run_loop(verb()) == 7


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_the_end_of_the_terminal_stops_a_verb_gently_unless_it_was_started_with_nohup(ignored: bool) -> None:
    async def verb() -> int:
        async with stop_requested() as wanted:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            if not ignored:
                await asyncio.wait_for(wanted.wait(), 5)
            assert wanted.is_set() is not ignored
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert run_loop(verb()) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("status", [0, 130])
def test_a_verb_that_is_stopped_while_it_starts_ends_with_the_status_it_has_for_this(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def verb() -> int:
        async with stop_requested(status=status):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()  # the server that it waits for
        return 7

    assert run_loop(verb()) == status
    assert capsys.readouterr().err == "rolecall: stopped before the start was over\n"


def test_a_stop_just_when_a_verb_begins_to_wait_for_it_is_waited_for() -> None:
    async def verb() -> int:
        async with stop_requested() as wanted:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.create_task(wanted.wait())
        return 7

    assert run_loop(verb()) == 7


def test_a_ctrl_c_while_a_verb_reads_its_configuration_ends_it() -> None:
    async def verb() -> int:
        os.kill(os.getpid(), signal.SIGINT)  # the configuration is read here, before the first await
        async with stop_requested() as wanted:
            await wanted.wait()
        return 7

    with pytest.raises(KeyboardInterrupt):
        run_loop(verb())


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_serving_verb_that_is_stopped_while_it_loads_ends_well(signal_number: int) -> None:
    """The module that is imported last stands for all of them."""
    program = f"""
import os, sys, types
class Loads(types.ModuleType):
    @property
    def app(self):
        os.kill(os.getpid(), {int(signal_number)})
        return lambda: sys.exit("it went on")
sys.modules["rolecall.cli.main"] = Loads("main")
sys.argv = ["rolecall", "worker"]
from rolecall.cli import main
main()
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_error_of_the_verb_itself_is_raised() -> None:
    async def verb() -> int:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_loop(verb())


CLOSED_TLS = """
import asyncio
from rolecall.cli.stderr_log import log_to_stderr
from rolecall.settings import Settings

log_to_stderr(Settings())
loop = asyncio.new_event_loop()
closed = RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
loop.call_exception_handler({"message": "Fatal error on SSL protocol", "exception": closed})
loop.call_exception_handler({"message": "Task exception was never retrieved", "exception": closed})
"""


def test_a_tls_connection_that_was_closed_here_is_no_error_of_the_log() -> None:
    told = subprocess.run([sys.executable, "-c", CLOSED_TLS], capture_output=True, text=True, check=True).stderr
    assert "SSL protocol" not in told and "never retrieved" in told
