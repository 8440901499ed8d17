"""The process that owns one engine: starts it as its child, keeps its place in Redis, ends it, and ends with it.

Run by file name with its orders as JSON on stdin (see keeper.Orders). The engine is started before anything of
Rolecall is imported: it loads meanwhile. It dies with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

DIE_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG."""


def main() -> None:
    """Start the engine and keep it."""
    orders = sys.stdin.buffer.read()
    spec, server = (json.loads(orders)[part] for part in ("spec", "server"))
    port = _free_port() if any("{port}" in part for part in spec["command"]) else 0
    engine = _started(spec, server["key"], port)
    _lay_bare(Path(__file__).parents[1])
    from rolecall.serving.keeper import keep

    asyncio.run(keep(orders, engine, port))
    # Threads may still be waiting for an engine that does not even end when it is killed.
    os._exit(0)


def _lay_bare(package: Path) -> None:
    """Have the package's modules without what it imports by itself, the whole framework: the engine is just loading,
    and needs the processor."""
    bare = types.ModuleType(package.name)
    bare.__path__ = [str(package)]
    sys.modules[package.name] = bare


def _started(spec: dict[str, Any], key: str, port: int) -> subprocess.Popen[bytes] | OSError:
    """The engine, or why it cannot be started: whoever asked is to hear of it."""
    own = not spec["command"]
    engine_file = Path(__file__).with_name("engine.py")
    # -P: nothing in the current directory may pass for a module of the standard library.
    command = [sys.executable, "-P", str(engine_file)] if own else _filled(spec, port)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if own else subprocess.DEVNULL,
            stdout=subprocess.PIPE if own else sys.stderr,
            start_new_session=True,
            preexec_fn=_tied(key),
        )
    except OSError as error:
        return error
    if child.stdin:
        orders = {name: spec[name] for name in ("weights", "slots", "context", "threads")}
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps({**orders, "key": key}).encode() + b"\n")
            child.stdin.flush()
    return child


def _filled(spec: dict[str, Any], port: int) -> list[str]:
    """The command with its places filled in; no other braces are touched, for they may be JSON."""
    places = {"{port}": port, "{slots}": spec["slots"], "{context}": spec["context"]}
    places["{tokens}"] = spec["slots"] * spec["context"]
    parts = list(spec["command"])
    for place, value in places.items():
        parts = [part.replace(place, str(value)) for part in parts]
    return parts


def _tied(key: str) -> Callable[[], None]:
    """What the child does before it becomes the engine: on Linux it is tied to the life of this process's thread."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        if prctl is not None:
            prctl(DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        # Where llama.cpp and vLLM look for it; a command line would show it to everyone.
        os.putenv("LLAMA_API_KEY", key)
        os.putenv("VLLM_API_KEY", key)

    return tie


def _free_port() -> int:
    """For engines that cannot choose one themselves. That it is theirs in the end is seen before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
