"""`rolecall tools`: the real command line, asked by the real client."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

from rolecall import connect
from rolecall.agent.mcp import ToolServer, ToolServerHost, ToolServers
from rolecall.agent.tools import Toolbox
from rolecall.bus.conversation import active_conversations
from rolecall.errors import ToolError
from tests.applications import AGENTS, clean_environment, make_application, own_modules, run_rolecall, running
from tests.command_line import ROLECALL, Piped, open_verb
from tests.waiting import alive, wait_until

CONFIG = '''\
import os
import time

from agents.all import ManagerAgent
from rolecall import Config, Role


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def process() -> int:
    """Tell the process."""
    time.sleep(0.05)
    return os.getpid()


config = Config(roles=(Role(ManagerAgent),), tools=(add, process))
'''
SLOW = '''

class SlowAgent(Agent):
    """Counts slowly."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        import asyncio
        for number in range(int(envelope.text)):
            await ctx.emit(f"{number} ")
            await asyncio.sleep(0.3)
        return envelope.reply("counted")


class TellAgent(Agent):
    """Tells what it remembers."""

    async def handle(self, envelope: Envelope, ctx: Context) -> Envelope:
        return envelope.reply(" | ".join(message.text for message in await ctx.memory.history()) or "nothing")
'''
ROLES = """\
from agents.all import ManagerAgent, SampleLLMAgent, SlowAgent, TellAgent
from rolecall import Config, Role


def add(a: int, b: int) -> int:
    '''Add two numbers.'''
    return a + b


config = Config(
    roles=(
        Role(ManagerAgent), Role(SampleLLMAgent, models=("echo@test",)), Role(SlowAgent, instances=2, match="/slow"),
        Role(TellAgent, match="/tell"),
    ),
    tools=(add,),
    appendfsync="everysec",
    heartbeat_seconds=0.5,
)
"""


@pytest.fixture
def application(tmp_path: Path) -> Path:
    return make_application(tmp_path, config=CONFIG, agents=AGENTS)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return unused_port()


@contextmanager
def serving(application: Path, port: int, *arguments: str, **settings: str) -> Iterator[tuple[Piped, str]]:
    """`rolecall tools` at work: its process and what it said first."""
    environment = clean_environment({"TOOLS_PORT": str(port), **settings})
    process = open_verb(["tools", "--app", application, *arguments], environment)
    try:
        yield process, process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@asynccontextmanager
async def tools_at(url: str, directory: Path, key: str = "") -> AsyncIterator[Toolbox]:
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        await client.post(url)  # the server may need longer to start than a tool server may take to answer
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    servers = ToolServers({"them": ToolServer(url=url, headers=headers)}, ToolServerHost(directory, directory))
    try:
        yield Toolbox([await servers.tools("them")])
    finally:
        await servers.aclose()


def address(line: str) -> str:
    return line.split(" ")[2].rstrip(":")


async def test_two_processes_serve_the_tools_and_end_at_ctrl_c(application: Path, free_port: int) -> None:
    with serving(application, free_port, TOOLS_SERVER_WORKERS="2") as (process, line):
        assert line == f"tools at http://127.0.0.1:{free_port}/mcp: add, process, ask\n"
        async with tools_at(address(line), application) as tools:
            assert tools.tools["add"].spec.description == "Add two numbers."
            assert (await tools.run("add", '{"a": 2, "b": 3}')).text == "5"
            assert (await tools.run("add", '{"a": "x"}')).text.startswith("error: wrong arguments: a: ")
            pids: set[str] = set()

            async def both_seen() -> bool:
                calls = await asyncio.gather(*(tools.run("process", "") for _ in range(8)))
                pids.update(call.text for call in calls)
                return len(pids) == 2

            await wait_until(both_seen, what="answers of both processes")
            assert str(process.pid) not in pids
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (0, "")
    assert not any(alive(int(pid)) for pid in pids)


async def test_a_process_that_is_killed_is_replaced_and_none_outlives_the_first(
    application: Path, free_port: int
) -> None:
    with serving(application, free_port, TOOLS_SERVER_WORKERS="2") as (process, line):
        async with tools_at(address(line), application) as tools:
            first = (await tools.run("process", "")).text
            os.kill(int(first), signal.SIGKILL)

            async def replaced() -> bool:
                calls = await asyncio.gather(*(tools.run("process", "") for _ in range(8)))
                return len({call.text for call in calls if not call.failed}) == 2

            await wait_until(replaced, seconds=60, what="two processes")
        process.kill()

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", free_port)) != 0

        await wait_until(refused, seconds=20, what="the end of the others")


async def test_a_key_is_asked_for_where_there_is_one_and_the_next_port_taken(application: Path, free_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", free_port)),
        serving(application, free_port, TOOLS_KEY="s3cret-key") as (process, line),
    ):
        assert f"(port {free_port} is taken)" in line
        url = address(line)
        async with tools_at(url, application, "s3cret-key") as tools:
            assert (await tools.run("add", '{"a": 2, "b": 3}')).text == "5"
        for key in ("", "wrong", "s3cret-ke", "S3cret-key"):
            with pytest.raises(ToolError, match="HTTP 401") as caught:
                async with tools_at(url, application, key):
                    pass
            assert "s3cret" not in str(caught.value)
        process.send_signal(signal.SIGTERM)
        more, said = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "s3cret" not in line + more + said


@pytest.fixture(scope="module")
def keyless_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    application = make_application(tmp_path_factory.mktemp("keyless"), config=CONFIG, agents=AGENTS)
    with serving(application, unused_port()) as (_, line):
        yield address(line)


async def test_a_page_of_another_site_is_refused(keyless_url: str) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            answer = await client.post(keyless_url, json={"jsonrpc": "2.0"}, headers=headers)
            assert answer.status_code in (403, 421)


@pytest.mark.parametrize("header", [{"host": "assistant.example"}, {"x-forwarded-for": "192.0.2.1"}])
async def test_without_a_key_what_comes_through_a_proxy_calls_no_tool(keyless_url: str, header: dict[str, str]) -> None:
    async with httpx2.AsyncClient() as client:
        refused = await client.post(keyless_url, headers=header, json={})
        assert (refused.status_code, "TOOLS_KEY" in refused.text) == (403, True)
        assert (await client.post(keyless_url, json={})).status_code != 403


def test_an_address_that_others_reach_needs_a_key(application: Path) -> None:
    done = run_rolecall("tools", "--app", application, "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "--host 0.0.0.0 lets other machines in: set TOOLS_KEY" in done.stderr


def test_without_tools_and_roles_it_says_how_to_offer_some(tmp_path: Path) -> None:
    done = run_rolecall("tools", "--no-roles", "--app", make_application(tmp_path))
    assert done.returncode == 2
    assert "Config(tools=(function, …))" in done.stderr


def test_a_function_that_cannot_be_a_tool_is_refused_at_the_start(tmp_path: Path) -> None:
    config = CONFIG.replace('    """Add two numbers."""\n', "")
    done = run_rolecall("tools", "--app", make_application(tmp_path, config=config))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "tool add has no docstring" in done.stderr


# ── roles ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An application whose roles answer."""
    directory = make_application(tmp_path_factory.mktemp("roles"), config=ROLES, agents=AGENTS + SLOW)
    with running(directory):
        yield directory


@pytest.fixture(scope="module")
def tools_url(at_work: Path) -> Iterator[str]:
    with serving(at_work, unused_port()) as (_, line):
        yield address(line)


@pytest.fixture
def loadable() -> Iterator[None]:
    """Other tests of this process may have loaded another application."""
    with own_modules():
        yield


@asynccontextmanager
async def client_by(transport: str, directory: Path, url: str) -> AsyncIterator[Client]:
    """The official client, of the newest protocol or of an earlier one."""
    kind, _, mode = transport.partition(" ")
    arguments = ["tools", "--stdio", "--app", str(directory)]
    program = StdioServerParameters(command=str(ROLECALL), args=arguments, env=clean_environment())
    async with Client(url if kind == "http" else program, mode=mode or "auto", cache=None) as client:
        yield client


async def said(client: Client, name: str, **arguments: str) -> tuple[str, bool]:
    result = await client.call_tool(name, arguments)
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text, bool(result.is_error)


TRANSPORTS = ("http", "http legacy", "stdio", "stdio legacy")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_roles_are_tools_and_tell_how_far_they_are(transport: str, at_work: Path, tools_url: str) -> None:
    async with client_by(transport, at_work, tools_url) as client:
        tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}
        assert list(tools) == ["add", "ask", "ask_samplellm", "ask_slow", "ask_tell"]
        assert tools["ask_slow"] == "Ask the agent slow: Counts slowly."
        assert await said(client, "ask", text="Hello") == ("echo: Hello", False)
        told: list[tuple[float, str]] = []

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            told.append((progress, message or ""))

        result = await client.call_tool("ask_slow", {"text": "3"}, progress_callback=tell)
        assert isinstance(result.content[0], TextContent) and result.content[0].text == "counted"
        assert [number for number, _ in told] == list(range(1, len(told) + 1))
        assert "slow is working" in [message for _, message in told]
        assert "".join(message for _, message in told if message[0].isdigit()).startswith("0 1 ")


async def test_a_conversation_with_a_name_goes_on(at_work: Path, tools_url: str) -> None:
    async with client_by("http", at_work, tools_url) as client:
        for _ in range(2):
            assert await said(client, "ask_tell", text="?") == ("nothing", False)
        await said(client, "ask_samplellm", text="I am Ann", conversation="trip")
        assert await said(client, "ask_tell", text="?", conversation="trip") == ("I am Ann | echo: I am Ann", False)


async def test_what_fails_is_one_clear_error(at_work: Path, tools_url: str) -> None:
    async with client_by("http", at_work, tools_url) as client:
        assert "it was asked for" in (await said(client, "ask_samplellm", text="bury me"))[0]
        for arguments in (
            {"text": " "},
            {},
            {"text": "x", "conversation": "x" * 200},
            {"text": "a", "conversation": "\n"},
        ):
            _, failed = await said(client, "ask", **arguments)
            assert failed
        told, failed = await said(client, "ask_nobody", text="?")
        assert failed and "there is no tool 'ask_nobody'" in told and "ask_samplellm" in told


@pytest.mark.parametrize("transport", ["http", "stdio", "stdio legacy"])
async def test_a_cancelled_call_cancels_its_turn(
    transport: str, at_work: Path, tools_url: str, loadable: None
) -> None:  # fmt: skip
    async with connect(app=at_work) as assistant, client_by(transport, at_work, tools_url) as client:
        bus = assistant.session.bus
        assert not await active_conversations(bus)
        started = asyncio.Event()

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            started.set()

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.call_tool("ask_slow", {"text": "300"}, progress_callback=tell))
                await started.wait()
                assert len(await active_conversations(bus)) == 1
                scope.cancel()

        async def ended() -> bool:
            return not await active_conversations(bus)

        await wait_until(ended, what="the end of the turn")


async def test_roles_without_a_worker_say_what_to_start(tmp_path: Path, free_port: int) -> None:
    application = make_application(tmp_path)
    with serving(application, free_port) as (_, line):
        async with client_by("http", application, address(line)) as client:
            text, failed = await said(client, "ask", text="Hello")
            assert failed and "rolecall up" in text
