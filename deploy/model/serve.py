"""Serve the image's small local model, for LOCAL_URL. With the argument ``health``, check that it is served.

LOCAL_KEY_FILE is the file with the API key that clients must send, LOCAL_SLOTS the number of concurrent requests,
LOCAL_CONTEXT the tokens of each, LOCAL_THREADS the number of threads (default: all processors).
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

PORT = 10009
WEIGHTS = Path("/opt/model/weights/smollm2.gguf")


def main() -> None:
    """Load the model and serve it until the container stops."""
    if sys.argv[1:] == ["health"]:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=3):
            return
    slots, context = number("LOCAL_SLOTS", 4), number("LOCAL_CONTEXT", 2048)
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(WEIGHTS)
    params.hostnames, params.port = ["0.0.0.0"], PORT
    params.api_keys = [Path(os.environ["LOCAL_KEY_FILE"]).read_text().strip()]
    params.n_parallel, params.n_ctx = slots, slots * context
    threads = number("LOCAL_THREADS", len(os.sched_getaffinity(0)))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params, params.cache_ram_mib, params.ui, params.offline = False, 0, False, True
    server = xllamacpp.Server(params)
    print(f"model: smollm2 is ready: {slots} slots of {context} tokens, {threads} threads", flush=True)
    threading.Event().wait()
    del server


def number(name: str, default: int) -> int:
    """A positive integer from the environment."""
    given = os.environ.get(name) or str(default)
    if not given.isdigit() or int(given) < 1:
        raise SystemExit(f"model: {name}={given} is invalid: expected an integer of at least 1")
    return int(given)


if __name__ == "__main__":
    main()
