"""The child process that holds one loaded model: llama.cpp's own server, on loopback, on a free port.

Run by file name with its orders as JSON on stdin (a key on the command line would show in every process
list). It imports nothing of Rolecall, so it starts fast and wherever the package lies. It ends by itself when
the last user lets go of the users' lock, however that user ended.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 1.0


def main() -> None:
    """Load the model, write the record, stay until nobody holds the users' lock."""
    orders = json.load(sys.stdin)
    server = _load(orders)
    _write_record(Path(orders["record"]), server.listening_address, orders["api_key"])
    users = os.open(orders["users_lock"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while _in_use(users):
        time.sleep(POLL_SECONDS)
    # Not a return: nothing is worth waiting for, and the users' lock stays ours until the process is gone.
    os._exit(0)


def _load(orders: dict[str, Any]) -> Any:
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise SystemExit(f"xllamacpp cannot be loaded here: {error}") from None
    params = xllamacpp.CommonParams()
    params.model.path = orders["weights"]
    params.api_keys = [orders["api_key"]]
    params.n_parallel = orders["slots"]
    params.n_ctx = orders["slots"] * orders["context"]
    threads = orders["threads"] or len(_cores())
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = False
    params.cache_ram_mib = 0
    params.ui = False
    params.offline = True
    # Holds the interpreter until the model is loaded: the reason why this is a process of its own.
    return xllamacpp.Server(params)


def _cores() -> set[int]:
    """The cores this process may use; more threads than cores make llama.cpp several times slower."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _write_record(path: Path, url: str, api_key: str) -> None:
    """Atomic: readers see no record or a whole one."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as out:
        json.dump({"url": url, "api_key": api_key, "pid": os.getpid()}, out)
    part.replace(path)


def _in_use(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


if __name__ == "__main__":
    main()
