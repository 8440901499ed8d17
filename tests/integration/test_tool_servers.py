"""Sessions with tool servers: opened when asked for, opened anew when broken, closed without a trace."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rolecall.agent.mcp import ToolServer, ToolServerHost, ToolServers
from rolecall.agent.tools import Toolbox, ToolLimits
from rolecall.errors import ConfigError, ToolError
from tests.waiting import alive, wait_until

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "tool_program.py"))


@asynccontextmanager
async def connected(directory: Path, server: ToolServer, **environ: str) -> AsyncIterator[Callable[..., Any]]:
    """A way to call the tools of ``server``."""
    servers = ToolServers({"notes": server.resolved("notes", environ)}, ToolServerHost(directory, directory / "state"))

    async def call(name: str, /, **arguments: object) -> str:
        toolbox = Toolbox([await servers.tools("notes")], ToolLimits(seconds=20))
        return (await toolbox.run(name, json.dumps(arguments))).text

    try:
        yield call
    finally:
        await servers.aclose()


def program(**options: Any) -> ToolServer:
    return ToolServer(command=PROGRAM, **{"seconds": 30, **options})


async def gone(pid: int) -> None:
    await wait_until(lambda: not alive(pid), what=f"the end of process {pid}")


async def test_one_program_serves_all_and_ends_with_the_session(tmp_path: Path) -> None:
    async with connected(tmp_path, program()) as call:
        pids = set(await asyncio.gather(*(call("process") for _ in range(10))))
        assert len(pids) == 1
    await gone(int(pids.pop()))


async def test_a_program_inherits_no_secret_and_gets_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    async with connected(tmp_path, program(env={"NOTES": "for ${WHO}"}), WHO="Ann") as call:
        assert await call("variable", name="OPENAI_API_KEY") == "unset"
        assert await call("variable", name="NOTES") == "for Ann"


async def test_a_program_that_dies_is_told_to_the_model_and_started_again(tmp_path: Path) -> None:
    async with connected(tmp_path, program()) as call:
        first = await call("process")
        text = await call("die")
        assert text.startswith(f"error: the tool server notes ({sys.executable}) is unavailable")
        assert (tmp_path / "state/tools/notes.log").read_text() == "dying as asked\n"
        assert (tmp_path / "state/tools/notes.log").stat().st_mode & 0o777 == 0o600
        assert await call("process") != first


async def test_only_what_is_chosen_is_offered_under_its_prefix(tmp_path: Path) -> None:
    async with connected(tmp_path, program(only=("process",), prefix="notes_")) as call:
        assert (await call("notes_process")).isdigit()
        assert "there is no tool 'variable'; there are notes_process" in await call("variable")


async def test_what_a_tool_refuses_is_told_to_the_model(tmp_path: Path) -> None:
    async with connected(tmp_path, program()) as call:
        assert (await call("read_note", name="lost")).startswith("error: ")
        assert (await call("read_note")).startswith("error: ")
        assert await call("read_note", name="monday") == "monday: buy milk"


@pytest.mark.parametrize(
    ("command", "seconds", "why"),
    [
        (("/no/such/program",), 10, "No such file"),
        (("false",), 10, "Connection closed"),
        (("cat",), 0.3, "is unavailable"),
        (("sleep", "60"), 0.3, "no answer within 0.3 s"),
    ],
)
async def test_a_command_that_is_no_tool_server_is_a_clear_error(
    tmp_path: Path, command: tuple[str, ...], seconds: float, why: str
) -> None:
    async with connected(tmp_path, ToolServer(command=command, seconds=seconds)) as call:
        with pytest.raises(ToolError, match=why):
            await call("anything")


async def test_an_address_that_keeps_silent_is_no_hang_and_no_secret_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://user:pass@127.0.0.1:{silent.getsockname()[1]}/mcp?key=s3cret"
        server = ToolServer(url=url, headers={"X-Key": "${KEY}"}, seconds=0.3)
        async with connected(tmp_path, server, KEY="s3cret") as call:
            with pytest.raises(ToolError, match=r"no answer within 0\.3 s") as caught:
                await call("anything")
    assert not {"s3cret", "pass"} & set(str(caught.value).replace("?", " ").replace(":", " ").split())
    assert "s3cret" not in repr(server.resolved("notes", {"KEY": "s3cret"}))


async def test_one_who_waits_may_leave_and_the_next_one_is_served(tmp_path: Path) -> None:
    async with connected(tmp_path, program()) as call:
        leaving = asyncio.create_task(call("process"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await call("process")).isdigit()
        assert leaving.cancelled()


@pytest.mark.parametrize(
    ("server", "why"),
    [
        (ToolServer(), "expected either command"),
        (ToolServer(command=("x",), url="http://127.0.0.1"), "expected either command"),
        (ToolServer(command="program"), "expected either command"),  # type: ignore[arg-type]
        (ToolServer(url="ftp://127.0.0.1"), "an address such as"),
        (ToolServer(url="http://127.0.0.1", headers={"A": "Bearer ${NOTES_KEY}"}), "needs NOTES_KEY"),
    ],
)
def test_what_cannot_be_a_tool_server_is_refused_at_the_start(server: ToolServer, why: str) -> None:
    with pytest.raises(ConfigError, match=f"tool server notes.*{why}"):
        server.resolved("notes", {})


async def test_a_server_that_is_not_configured_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tool server 'files' in config\.py; there are: none"):
        await ToolServers({}, ToolServerHost(tmp_path, tmp_path)).tools("files")
