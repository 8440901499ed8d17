"""What the head of a .gguf file says about its model: enough to know how much memory a token of context takes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
MOST = 1 << 20
"""No text or list in a head that is whole is longer; vocabularies are skipped, not read."""
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


def context_bytes(path: Path) -> int:
    """Bytes of memory that each token of context takes (keys and values of all layers, 16 bits each). 0 where the file
    is no such file or does not say."""
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
        if name.startswith("tokenizer."):  # what is wanted stands before it
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
