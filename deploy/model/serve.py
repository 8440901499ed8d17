"""Serves the small local model of the image, for LOCAL_URL; ``health`` as argument asks whether it does.

LOCAL_KEY_FILE names the file with the key that it asks for; LOCAL_SLOTS requests are answered at once, with
LOCAL_CONTEXT tokens each; LOCAL_THREADS are used, else as many as there are processors.
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
    """Load the model and serve it until the container ends."""
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
    print(f"model: smollm2 is ready, {slots} at once with {context} tokens each, on {threads} threads", flush=True)
    threading.Event().wait()
    del server


def number(name: str, default: int) -> int:
    """A whole number of the environment."""
    given = os.environ.get(name) or str(default)
    if not given.isdigit() or int(given) < 1:
        raise SystemExit(f"model: {name}={given}: a whole number from 1 on is allowed")
    return int(given)


if __name__ == "__main__":
    main()
