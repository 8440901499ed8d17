"""Memory for models, in MB: the estimate for one server, and the room this machine has for all."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rolecall.serving.spec import Spec

MB = 1_000_000
BY_WEIGHTS = 1.7
"""Memory per byte of a file of weights: the engine repacks them for this processor (measured, three models)."""
ENGINE = 60
HOST = 50
"""Memory of the process that supervises an engine."""
SAFETY = 512
"""Kept free for the rest of the machine; less on a small machine."""
CGROUP = Path("/sys/fs/cgroup")
MAGIC = b"GGUF"
MOST = 1 << 20
"""No string or list in a valid header is longer. Vocabularies are skipped."""
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


@dataclass(frozen=True)
class Room:
    """``most`` is the limit for all model servers together; ``free`` is what is available now, in addition to the
    running servers."""

    most: int
    free: int


def estimate(spec: Spec) -> int:
    """The memory a server of ``spec`` should need, before it was ever measured; 0 if unknown."""
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
    """The memory limit of this container, or None. Page cache counts as free: the kernel can drop it."""
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


def is_pooled(path: Path) -> bool:
    """Whether the weights say how the vectors of tokens become that of a text, as those of embedding models do."""
    try:
        with path.open("rb") as file:
            head = _head(file)
    except (OSError, ValueError, struct.error, MemoryError):
        return False
    return bool(head.get(f"{head.get('general.architecture', '')}.pooling_type"))


def context_bytes(path: Path) -> int:
    """Bytes of memory per token of context (keys and values of all layers, 16 bits each). 0 if the file is not GGUF
    or lacks the sizes."""
    try:
        with path.open("rb") as file:
            head = _head(file)
    except (OSError, ValueError, struct.error, MemoryError):
        return 0
    arch = head.get("general.architecture", "")
    layers, heads = head.get(f"{arch}.block_count", 0), head.get(f"{arch}.attention.head_count", 0)
    if not isinstance(layers, int) or not isinstance(heads, int) or not heads:
        return 0
    kv_heads = head.get(f"{arch}.attention.head_count_kv", heads)
    width = head.get(f"{arch}.attention.key_length") or head.get(f"{arch}.embedding_length", 0) // heads
    return layers * kv_heads * width * 2 * 2 if isinstance(kv_heads, int) and isinstance(width, int) else 0


def _head(file: BinaryIO) -> dict[str, Any]:
    if file.read(4) != MAGIC:
        raise ValueError("no gguf file")
    _, _, count = struct.unpack("<IQQ", file.read(20))
    found: dict[str, Any] = {}
    for _ in range(min(count, 10_000)):
        name = _text(file)
        found[name] = _value(file, struct.unpack("<I", file.read(4))[0])
        if name.startswith("tokenizer."):  # everything we need comes before it
            break
    return found


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(file)
    if kind == LIST:
        return _list(file)
    form = f"<{FORMS.get(kind, '?')}"
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _list(file: BinaryIO) -> list[Any]:
    kind, count = struct.unpack("<IQ", file.read(12))
    if count > MOST:
        raise ValueError("a list too long")
    return [_value(file, kind) for _ in range(count)]


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MOST:
        raise ValueError("a text too long")
    return file.read(length).decode("utf-8", "replace")
