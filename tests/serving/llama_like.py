"""A program like llama-server for tests: the engine of this package under llama-server's own options."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    for option, kind in (("-m", str), ("--port", int), ("-np", int), ("-c", int)):
        parser.add_argument(option, type=kind, dest=option.strip("-").replace("-", "_"))
    given = parser.parse_args()
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = given.m
    params.port = given.port
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.n_parallel, params.n_ctx = given.np, given.c
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params, params.cache_ram_mib, params.ui, params.offline = False, 0, False, True
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
