"""The process that owns one engine: starts it as a child process, registers it in Redis, and stops it.

Run by file name with its orders as JSON on stdin (see keeper.Orders). Starts the engine before it imports Rolecall,
so that the engine loads in the meantime. The engine dies with this process, however this process ends.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

DIE_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG."""


def main() -> None:
    """Start the engine and supervise it until it ends."""
    orders = sys.stdin.buffer.read()
    spec, server = (json.loads(orders)[part] for part in ("spec", "server"))
    port = _free_port() if any("{port}" in part for part in spec["command"]) else 0
    engine = _started(spec, server["key"], port)
    # For a package that is on the path of the process that started this one only.
    sys.path.append(str(Path(__file__).parents[2]))
    from rolecall.serving.keeper import keep

    asyncio.run(keep(orders, engine, port))
    # Not a return: threads may still wait for an engine that survives SIGKILL.
    os._exit(0)


def _started(spec: dict[str, Any], key: str, port: int) -> subprocess.Popen[bytes] | OSError:
    """The engine, or the error that kept it from starting, which the keeper reports to the caller."""
    own = not spec["command"]
    engine_file = Path(__file__).with_name("engine.py")
    # -P: a file in the current directory must not shadow a module of the standard library.
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
        orders = {name: spec[name] for name in ("weights", "slots", "context", "threads", "embedding")}
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps({**orders, "key": key}).encode() + b"\n")
            child.stdin.flush()
    return child


def _filled(spec: dict[str, Any], port: int) -> list[str]:
    """The command with its placeholders filled in. Other braces stay as they are: they may be JSON."""
    places = {"{port}": port, "{slots}": spec["slots"], "{context}": spec["context"]}
    places["{tokens}"] = spec["slots"] * spec["context"]
    parts = list(spec["command"])
    for place, value in places.items():
        parts = [part.replace(place, str(value)) for part in parts]
    return parts


def _tied(key: str) -> Callable[[], None]:
    """A preexec function: on Linux the kernel kills the child when the thread that started it ends."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        if prctl is not None:
            prctl(DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        # llama.cpp and vLLM read the key from these; on the command line every user could see it.
        os.putenv("LLAMA_API_KEY", key)
        os.putenv("VLLM_API_KEY", key)

    return tie


def _free_port() -> int:
    """A port for engines that cannot choose one. The keeper checks that the engine got it before using it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
