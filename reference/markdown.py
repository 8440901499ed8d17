"""Markdown that the pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, with an empty one before and after; none without rows."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    if not lines:
        return [""]
    return ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {line} |" for line in lines), ""]


def code(*names: str) -> str:
    """``names`` as code, with spaces between them."""
    return " ".join(f"`{name}`" for name in names if name)


def sentence(text: str) -> str:
    """A docstring in reST's manner as one line of Markdown."""
    return " ".join(text.replace("``", "`").split())


def summary(markdown: str) -> str:
    """The first sentence of a page, without links; empty if it begins with something else than text."""
    blocks = (block.strip() for block in re.split(r"\n\s*\n", markdown))
    first = next((block for block in blocks if block and not block.startswith("#")), "")
    if not re.match(r"[\w*\[]|`[^`]", first):
        return ""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence(first))
    return re.split(r"(?<=[.!?:]) (?=[A-Z`])", plain, maxsplit=1)[0].rstrip(":")
