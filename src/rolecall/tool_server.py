"""The application's tools for others: a server of the Model Context Protocol, over HTTP and without any state."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from rolecall import __version__
from rolecall.tools import FAILED, Toolbox

if TYPE_CHECKING:
    import mcp_types
    from mcp.server.lowlevel import Server

PATH = "/mcp"
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Asgi = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def tools_app(toolbox: Toolbox, host: str, key: str) -> Asgi:
    """The ASGI application that offers ``toolbox`` at PATH to those who show ``key``, to all if that is empty."""
    app: Asgi = _server(toolbox).streamable_http_app(
        streamable_http_path=PATH, stateless_http=True, json_response=True, host=host
    )
    return Guard(app, key) if key else app


class Guard:
    """Lets through to ``app`` who shows ``key``."""

    def __init__(self, app: Asgi, key: str) -> None:
        self._app, self._expected = app, f"bearer {key}".encode()

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http" and not self._lets_in(scope):
            headers = [(b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"The key is missing or wrong: TOOLS_KEY as a bearer.\n"})
            return
        await self._app(scope, receive, send)

    def _lets_in(self, scope: Scope) -> bool:
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        return hmac.compare_digest(scheme.lower() + b" " + key.strip(), self._expected)


def _server(toolbox: Toolbox) -> Server[Any]:
    import mcp_types
    from mcp.server.lowlevel import Server

    async def listed(context: Any, parameters: Any) -> mcp_types.ListToolsResult:
        tools = [
            mcp_types.Tool(name=s.name, description=s.description, input_schema=s.parameters) for s in toolbox.specs
        ]
        return mcp_types.ListToolsResult(tools=tools)

    async def called(context: Any, parameters: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        result = await toolbox.run(parameters.name, json.dumps(parameters.arguments or {}))
        text = mcp_types.TextContent(
            type="text", text=result.text.removeprefix(FAILED) if result.failed else result.text
        )
        return mcp_types.CallToolResult(content=[text], is_error=result.failed)

    return Server("rolecall", version=__version__, on_list_tools=listed, on_call_tool=called)
