"""Memory for models, in MB: what one will take, and what this machine has for all of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rolecall.serving.gguf import context_bytes
from rolecall.serving.server import Spec

MB = 1_000_000
BY_WEIGHTS = 1.7
"""Memory per byte of a file of weights: the engine repacks them for this processor (measured, three models)."""
ENGINE = 60
HOST = 50
"""What the process takes that looks after an engine."""
SAFETY = 512
"""Left to the rest of the machine, less where the machine is small."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """``most`` is for all model servers together, whatever else runs; ``free`` is what there is right now, beside
    those that run."""

    most: int
    free: int


def estimate(spec: Spec) -> int:
    """What a server of ``spec`` will take, before it was ever measured. 0 where nothing tells."""
    if spec.ram:
        return spec.ram
    files = [Path(part) for part in (spec.weights, *spec.command) if part.endswith(".gguf")]
    sizes = [(path, path.stat().st_size) for path in files if path.is_file()]
    if not sizes:
        return 0
    path, size = max(sizes, key=lambda found: found[1])
    return round((BY_WEIGHTS * size + spec.slots * spec.context * context_bytes(path)) / MB) + ENGINE + HOST


def room(limit: int | None = None) -> Room:
    """The memory of this machine or container, at most ``limit``. Needs psutil."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total // MB, machine.available // MB
    if (cgroup := _cgroup()) is not None:
        total, free = min(total, cgroup.most), min(free, cgroup.free)
    safety = min(SAFETY, total // 10)
    most = total - safety
    return Room(min(most, limit) if limit else most, max(0, free - safety))


def _cgroup() -> Room | None:
    """The limit of this container, if it has one; files it has read count as free, for they can be dropped."""
    for most, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            limit = int((CGROUP / most).read_text())
            lines = dict(line.split() for line in (CGROUP / stat).read_text().splitlines())
            now = int((CGROUP / used).read_text()) - int(lines.get(cached, 0))
            return Room(limit // MB, max(0, limit - now) // MB)
    return None
