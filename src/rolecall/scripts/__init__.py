"""The Lua scripts: one change of state each, loaded from the files beside this one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

_INCLUDE = re.compile(r"^-- include: (.+)$", re.MULTILINE)
_CHANGES_NOTHING = re.compile(r"^-- Changes nothing\b", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """A script's whole text, with what it includes in front, and the SHA-1 the server knows it by. One that ``reads``
    and changes nothing may be run by users who may only read its keys."""

    name: str
    body: bytes
    sha: str
    reads: bool = False


@cache
def script(name: str) -> Script:
    """The script ``scripts/<name>.lua``."""
    text = _read(f"{name}.lua")
    included = _INCLUDE.search(text)
    for part in reversed(included.group(1).split() if included else []):
        text = _read(f"lib/{part}.lua") + text
    body = text.encode()
    reads = bool(_CHANGES_NOTHING.search(text))
    return Script(name, body, sha1(body, usedforsecurity=False).hexdigest(), reads)


@cache
def all_scripts() -> tuple[Script, ...]:
    """Every script there is."""
    names = sorted(entry.name for entry in files(__name__).iterdir() if entry.name.endswith(".lua"))
    return tuple(script(name.removesuffix(".lua")) for name in names)


def _read(path: str) -> str:
    return files(__name__).joinpath(path).read_text(encoding="utf-8")
