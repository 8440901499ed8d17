"""The Model Context Protocol: tools of other servers, run as programs or reached over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from rolecall.agent.tools import NAME, Tool, json_object, parameters_of
from rolecall.bus.foreign_text import defused
from rolecall.environment import filled
from rolecall.errors import ConfigError, MissingExtra, ToolError, cause_of
from rolecall.models.model import ToolSpec
from rolecall.transport.http_client import address, client_options
from rolecall.transport.proxy import proxy_of

if TYPE_CHECKING:
    import httpx2
    import mcp_types
    from mcp import Client


logger = logging.getLogger(__name__)
CLOSE_SECONDS = 8.0
"""A program gets two seconds to exit by itself and two more after SIGTERM; then it is killed."""
PING_SECONDS = 10.0
"""How often a server reached over HTTP is asked whether it still answers, and how long that may take."""
MAX_PAGES = 100
MAX_TOOLS = 1000
DESCRIPTION_CHARS = 4000
UNCLEAN = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class ToolServer:
    """A tool server, either the ``command`` that starts it or its ``url``.

    ``${NAME}`` in the values of ``env`` and ``headers`` is replaced from the environment or .env. A program inherits
    nothing from the environment but HOME, PATH and the like. ``only`` names the tools to offer, all if empty;
    ``prefix`` is put before their names. ``seconds`` is the time limit to connect and to list the tools.
    """

    command: tuple[str, ...] = ()
    url: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    only: tuple[str, ...] = ()
    prefix: str = ""
    seconds: float = 10.0

    def resolved(self, name: str, environ: Mapping[str, str]) -> ToolServer:
        """A copy with its variables replaced. Raises ConfigError for an invalid tool server."""
        where = f"config.py, tool server {name}"
        if isinstance(self.command, str) or bool(self.command) == bool(self.url):
            raise ConfigError(f"{where}: expected either command=('program', 'argument', …) or url='http://…'")
        if self.url:
            address(f"{where}: url", self.url)
        env, headers = (
            {key: filled(value, environ, where) for key, value in values.items()} for values in (self.env, self.headers)
        )
        return replace(self, env=env, headers=headers)


@dataclass(frozen=True)
class ToolServerHost:
    """Where tool servers run and how they are reached: the application's directory, its state directory, and PROXY."""

    directory: Path
    state_dir: Path
    proxy: str = "SYSTEM"


class ToolServers:
    """The tool servers of a deployment, each with one session in this process, opened on first use."""

    def __init__(self, servers: Mapping[str, ToolServer], host: ToolServerHost) -> None:
        self._sessions = {name: ToolSession(name, server, host) for name, server in servers.items()}

    async def tools(self, name: str) -> Sequence[Tool]:
        """The tools of the server ``name``. Raises ToolError when it is unavailable, ConfigError if unknown."""
        session = self._sessions.get(name)
        if session is None:
            known = ", ".join(self._sessions) or "none"
            raise ConfigError(f"there is no tool server {name!r} in config.py; there are: {known}")
        return await session.tools()

    async def aclose(self) -> None:
        """Close all sessions and stop the programs behind them. Idempotent; later use opens new sessions."""
        await asyncio.gather(*(session.aclose() for session in self._sessions.values()))


class ToolSession:
    """The session with one tool server. One task opens and closes it, as the SDK requires."""

    def __init__(self, name: str, server: ToolServer, host: ToolServerHost) -> None:
        self._name, self._server, self._host = name, server, host
        self._client: Client | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._changing = asyncio.Lock()
        self._refusal = ""
        self._calls = 0

    async def tools(self) -> Sequence[Tool]:
        """The tools the server offers now. A broken session is reopened. Raises ToolError."""
        client = await self._ready()
        try:
            listed = await self._listed(client)
        except ToolError:  # perhaps only the session is gone
            listed = await self._listed(await self._ready())
        only, names = self._server.only, set[str]()
        return [self._tool(tool, names) for tool in listed if not only or tool.name in only]

    async def aclose(self) -> None:
        """Close the session. Idempotent."""
        if self._client is not None:
            await self._drop(self._client)

    def _tool(self, tool: mcp_types.Tool, names: set[str]) -> Tool:
        """``tool`` under a name that providers accept and that none of ``names`` has."""

        async def run(arguments: str) -> object:
            return await self._call(tool.name, json.loads(json_object(arguments)))

        name = _tool_name(f"{self._server.prefix}{tool.name}", names)
        names.add(name)
        description = defused(tool.description or tool.title or name)[:DESCRIPTION_CHARS]
        return Tool(ToolSpec(name, description, parameters_of(_defused_schema(tool.input_schema))), run)

    async def _listed(self, client: Client) -> list[mcp_types.Tool]:
        try:
            async with asyncio.timeout(self._server.seconds):
                return await self._all_tools(client)
        except Exception as error:  # the boundary: the SDK does not document what a broken session raises
            await self._drop(client)
            raise self._unavailable(error) from error

    async def _all_tools(self, client: Client) -> list[mcp_types.Tool]:
        tools: list[mcp_types.Tool] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            try:
                page = await client.list_tools(cursor=cursor)
                found, cursor = page.tools, page.next_cursor
            except ValidationError:
                found, cursor = await self._valid_tools(client, cursor)
            tools += found
            if not cursor or len(tools) >= MAX_TOOLS:
                break
        return tools[:MAX_TOOLS]

    async def _valid_tools(self, client: Client, cursor: str | None) -> tuple[list[mcp_types.Tool], str | None]:
        """A page of the list that the SDK refuses as a whole for the sake of one tool: those of it that can be used."""
        import mcp_types

        raw = await client.session._dispatcher.send_raw_request(
            "tools/list", {"cursor": cursor} if cursor else None, {}
        )
        tools, following = raw.get("tools"), raw.get("nextCursor")
        found = []
        for tool in tools if isinstance(tools, list) else []:
            name = tool.get("name") if isinstance(tool, dict) else None
            if not isinstance(name, str) or not name:
                logger.warning("tool server %s: a tool without a name is left out", self._name)
                continue
            words = {key: text for key in ("description", "title") if isinstance(text := tool.get(key), str)}
            schema = tool.get("inputSchema")
            schema = schema if isinstance(schema, dict) else {}
            found.append(mcp_types.Tool(name=name, input_schema=schema, **words))
        return found, following if isinstance(following, str) else None

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        client = await self._ready()
        self._calls += 1
        try:
            result = await client.call_tool(name, arguments)
        except ValidationError as error:
            raise ToolError(f"the tool server {self._name} gave no valid result") from error
        except Exception as error:  # the boundary, as above
            if isinstance(error, MCPError) and error.code != CONNECTION_CLOSED:
                raise ToolError(f"the tool server {self._name} says: {error}") from error
            await self._drop(client)
            raise ToolError(f"{self._unavailable(error)}; the call may have been carried out") from error
        finally:
            self._calls -= 1
        if result.is_error:
            raise ToolError(_as_text(result) or "it failed without a message")
        return _as_text(result) or "done"

    async def _ready(self) -> Client:
        async with self._changing:
            if self._client is not None and self._keeper is not None and not self._keeper.done():
                return self._client
            if importlib.util.find_spec("mcp") is None:
                raise MissingExtra("tools", f"the tool server {self._name}")
            opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            self._leave = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep(opened, self._leave), name=f"tool server {self._name}")
            try:
                self._client = await opened
            except asyncio.CancelledError:
                self._keeper.cancel()
                raise
            return self._client

    async def _keep(self, opened: asyncio.Future[Client], leave: asyncio.Event) -> None:
        """Hold a session open until ``leave`` is set."""
        problem: BaseException = asyncio.CancelledError()
        try:
            # In a thread: importing the SDK takes most of a second, and heartbeats must go on.
            await asyncio.to_thread(importlib.import_module, "mcp")
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._server.seconds):
                    client = await self._connect(stack)
                if not opened.done():
                    opened.set_result(client)
                    await self._watch(client, leave)
        except (Exception, BaseExceptionGroup) as error:  # the boundary: raised where the session is awaited
            problem = error
            if opened.done() and not leave.is_set():
                logger.warning("%s", self._unavailable(error))
        finally:
            if not opened.done():
                opened.set_exception(self._unavailable(problem))

    async def _watch(self, client: Client, leave: asyncio.Event) -> None:
        """Return once ``leave`` is set. Raises when a server reached over HTTP stops answering: its connections may
        be dead without a word. One that is busy with a call is not asked; the call has its own time limit."""
        while not leave.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_SECONDS):
                    await leave.wait()
            if self._server.url and not self._calls and not leave.is_set():
                try:
                    await self._ping(client)
                except BaseException:
                    if self._client is client and (keeper := self._keeper) is not None:
                        self._client = None
                        asyncio.get_running_loop().call_later(CLOSE_SECONDS, keeper.cancel)
                    raise

    async def _ping(self, client: Client) -> None:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, EmptyResult, PingRequest

        try:
            async with asyncio.timeout(PING_SECONDS):
                await client.session.send_request(PingRequest(), EmptyResult)
        except MCPError as error:  # an answer all the same: later versions of the protocol have no ping
            if error.code == CONNECTION_CLOSED:
                raise
        except ValidationError:
            pass

    async def _drop(self, client: Client) -> None:
        """Close the session of ``client``, unless another one has replaced it."""
        async with self._changing:
            if self._client is not client or self._keeper is None:
                return
            keeper, self._client, self._keeper = self._keeper, None, None
            self._leave.set()
            await asyncio.wait({keeper}, timeout=CLOSE_SECONDS)
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _connect(self, stack: AsyncExitStack) -> Client:
        from mcp import Client

        transport = self._program(stack) if self._server.command else await self._http(stack)
        client = await stack.enter_async_context(Client(transport, cache=None))
        # It would refuse what does not match the schema of its tool, and list the tools again where one has none.
        client.session.validate_tool_result = _anything  # type: ignore[method-assign]
        # And it would refuse a whole result, of a call that was made, for the sake of one block that it does not know.
        dispatcher = client.session._dispatcher
        ask = dispatcher.send_raw_request

        async def asked(method: str, *more: Any) -> Any:
            result = await ask(method, *more)
            return _with_known_blocks(result) if method == "tools/call" else result

        dispatcher.send_raw_request = asked  # type: ignore[method-assign, assignment]
        return client

    def _program(self, stack: AsyncExitStack) -> Any:
        from mcp import StdioServerParameters, stdio_client

        command, *arguments = self._server.command
        self.stderr_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stderr = stack.enter_context(self.stderr_file.open("w"))
        self.stderr_file.chmod(0o600)
        env, directory = dict(self._server.env), self._host.directory
        return stdio_client(StdioServerParameters(command=command, args=arguments, env=env, cwd=directory), stderr)

    async def _http(self, stack: AsyncExitStack) -> Any:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async def remember(response: httpx2.Response) -> None:
            self._refusal = f"HTTP {response.status_code} {response.reason_phrase}" if response.is_error else ""

        http = httpx2.AsyncClient(
            headers=dict(self._server.headers),
            timeout=httpx2.Timeout(self._server.seconds, read=None),
            event_hooks={"response": [remember]},
            **client_options(self._server.url, proxy_of(self._host.proxy, self._server.url), httpx2),
        )
        return streamable_http_client(self._server.url, http_client=await stack.enter_async_context(http))

    @property
    def stderr_file(self) -> Path:
        """The file with a program's stderr."""
        return self._host.state_dir / "tools" / f"{UNCLEAN.sub('_', self._name)}.log"

    def _unavailable(self, error: BaseException) -> ToolError:
        """The error for an unavailable server; it shows no header, query or variable."""
        command, url = self._server.command, urlsplit(self._server.url)
        at = command[0] if command else f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        logged = command and self.stderr_file.exists() and self.stderr_file.stat().st_size
        hint = f"; see {self.stderr_file}" if logged else ""
        return ToolError(f"the tool server {self._name} ({at}) is unavailable: {self._reason(error)}{hint}")

    def _reason(self, error: BaseException) -> str:
        error = cause_of(error)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._server.seconds:g} s"
        if isinstance(error, asyncio.CancelledError):
            return "the session broke"
        return self._refusal or str(error) or type(error).__name__


def _tool_name(name: str, names: set[str]) -> str:
    """``name`` as providers accept it, with a number if another tool has it."""
    name = UNCLEAN.sub("_", name)[:64] or "tool"
    name = name if NAME.fullmatch(name) else f"_{name}"[:64]
    numbered = (name, *(f"{name[:60]}_{number}" for number in range(2, 1000)))
    return next(one for one in numbered if one not in names)


async def _anything(name: str, result: mcp_types.CallToolResult) -> None:
    """Accepts each result: the model reads it."""


@cache
def _known_block() -> TypeAdapter[Any]:
    """What the SDK takes as a block of a result."""
    from mcp_types import ContentBlock

    return TypeAdapter(ContentBlock)


def _with_known_blocks(result: Any) -> Any:
    """The result of a call, in which what the SDK would refuse is text."""
    if not isinstance(result, dict) or result.get("resultType") == "input_required":
        return result
    known, blocks, content = _known_block(), list[Any](), result.get("content")
    for block in content if isinstance(content, list) else [] if content is None else [content]:
        try:
            known.validate_python(block, by_name=False)
            blocks.append({"type": "text", **block})
        except ValidationError:
            blocks.append({"type": "text", "text": _unknown(block)})
    structured = result.get("structuredContent")
    if isinstance(structured, dict | None):
        return {**result, "content": blocks}
    blocks = blocks or [{"type": "text", "text": json.dumps(structured, ensure_ascii=False)}]
    return {**result, "content": blocks, "structuredContent": None}


def _unknown(block: object) -> str:
    """A block of no type that is known, for the model: its text, else all of it but the bytes of a file."""
    said = block.get("text") if isinstance(block, dict) else block
    if isinstance(said, str):
        return said
    if isinstance(block, dict):
        block = {name: value for name, value in block.items() if name not in ("data", "blob")}
    return json.dumps(block, ensure_ascii=False)


def _as_text(result: mcp_types.CallToolResult) -> str:
    """A result as text, with that of files in it; images and the like are only mentioned."""
    parts = [_part(block) for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(block: mcp_types.ContentBlock) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource":
        text = getattr(block.resource, "text", None)
        return f"[{block.resource.uri}]" if text is None else f"[{block.resource.uri}]\n{text}"
    return f"[{block.uri}]" if block.type == "resource_link" else f"[{block.type}]"


def _defused_schema(schema: object) -> object:
    """``schema`` whose texts, such as the descriptions of parameters, open and close no tag."""
    try:
        return json.loads(defused(json.dumps(schema)))
    except (TypeError, ValueError, RecursionError):
        return {}
