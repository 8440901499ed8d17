"""A tool server as a program: speaks the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

import os
import sys

from mcp.server.mcpserver import MCPServer
from opentelemetry.trace import get_current_span

server = MCPServer("notes")


@server.tool(name="read.note", description="Read a note.")
def read(name: str) -> str:
    if name == "lost":
        raise ValueError("no such note")
    return f"{name}: buy milk"


@server.tool(description="Tell an environment variable.")
def variable(name: str) -> str:
    return os.environ.get(name, "unset")


@server.tool(description="Tell the process.")
def process() -> int:
    return os.getpid()


@server.tool(description="Tell the trace that this call belongs to.")
def trace() -> str:
    return f"{get_current_span().get_span_context().trace_id:032x}"


@server.tool(description="End without a word.")
def die() -> None:
    print("dying as asked", file=sys.stderr, flush=True)
    os._exit(3)


if __name__ == "__main__":
    server.run("stdio")
