"""The child process that holds one loaded model: llama.cpp's server on loopback, on a free port.

Run by file name with its orders as JSON in the first line of stdin (a key on the command line would show in every
process list). Prints its address to stdout. Imports nothing of Rolecall, so it starts fast from any install location.
Exits when stdin closes, which happens however its parent process ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

LOG_SECONDS = 0.3
"""How long the thread that writes llama.cpp's log has to say why a model cannot be loaded: a process that fails does
not wait for it."""


def main() -> None:
    """Load the model, print its address, and serve until stdin closes."""
    orders = json.loads(sys.stdin.readline())
    server = _load(orders)
    sys.stdout.write(json.dumps({"url": server.listening_address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    # Not a return: do not wait for threads.
    os._exit(0)


def _load(orders: dict[str, Any]) -> Any:
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise SystemExit(f"xllamacpp cannot be loaded here: {error}") from None
    params = xllamacpp.CommonParams()
    params.model.path = orders["weights"]
    params.api_keys = [orders["key"]]
    params.n_parallel = orders["slots"]
    params.n_ctx = orders["slots"] * orders["context"]
    threads = orders["threads"] or len(_cores())
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = False
    params.cache_ram_mib = 0
    if orders.get("embedding"):
        # A text has to fit into one batch.
        params.embedding = True
        params.n_batch = params.n_ubatch = orders["context"]
        if orders["embedding"] == "mean":
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.ui = False
    params.offline = True
    # Holds the GIL until the model is loaded, which is why the engine has its own process.
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        time.sleep(LOG_SECONDS)
        raise


def _cores() -> set[int]:
    """The cores this process may use. llama.cpp is several times slower with more threads than cores."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


if __name__ == "__main__":
    main()
