"""Why an engine did not get ready, in one line for a person."""

from __future__ import annotations

import signal
from pathlib import Path

from rolecall.serving.server import WAYS_OUT

TAIL_BYTES = 64_000


def why_not(model: str, code: int, log: Path) -> str:
    """What its exit status and the log of the engine say."""
    if code == -signal.SIGILL:
        return f"{model}: this processor lacks what the model engine needs (AVX2 on x86-64); {WAYS_OUT}"
    if code < 0:
        return f"{model}: the model engine was killed while loading ({signal.Signals(-code).name})"
    reason = _reason(_tail(log).splitlines())
    ways_out = f"; {WAYS_OUT}" if reason.startswith("xllamacpp") else ""
    return f"{model} cannot be loaded: {reason} (all of it in {log}){ways_out}"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _reason(lines: list[str]) -> str:
    """The first line llama.cpp marks as an error, else the last words."""
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    said = errors or [line for line in reversed(lines) if line.strip()] or ["it ended without a word"]
    return said[0].strip()[:300]
