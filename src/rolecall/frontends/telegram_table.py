"""A Markdown table as lines of equal width, for a screen with characters of equal width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len

GRID_LIMIT = 80
"""Columns on the screen; a wider table becomes a list, which a narrow screen can break."""


def laid_out(rows: Sequence[Sequence[str]], aligned: Sequence[str]) -> tuple[str, bool]:
    """The table's text, and whether it is a grid (and no list). ``rows[0]`` is the heading; ``aligned`` says Left,
    Right, Center or None for each column. Lines within a cell end in ``\\n``."""
    cells = [[cell.split("\n") for cell in row] for row in rows]
    columns = list(zip_longest(*cells, fillvalue=[""]))
    widths = [max(cell_len(line) for cell in column for line in cell) for column in columns]
    if sum(widths) + 3 * (len(widths) - 1) > GRID_LIMIT:
        return _listed(rows), False
    lines = [line for row in cells for line in _lines(row, widths, aligned)]
    lines.insert(max(len(cell) for cell in cells[0]), "─┼─".join("─" * width for width in widths))
    return "\n".join(lines), True


def _lines(row: Sequence[Sequence[str]], widths: Sequence[int], aligned: Sequence[str]) -> list[str]:
    full = [*row, *([[""]] * (len(widths) - len(row)))]
    sides = [*aligned, *(["None"] * (len(widths) - len(aligned)))]
    return [
        " │ ".join(_padded(line, width, side) for line, width, side in zip(line, widths, sides, strict=True)).rstrip()
        for line in zip_longest(*full, fillvalue="")
    ]


def _padded(text: str, width: int, side: str) -> str:
    spare = width - cell_len(text)
    left = {"Right": spare, "Center": spare // 2}.get(side, 0)
    return " " * left + text + " " * (spare - left)


def _listed(rows: Sequence[Sequence[str]]) -> str:
    lines = [" · ".join(cell.replace("\n", " ") for cell in row) for row in rows]
    return "\n".join([lines[0], *(f"• {line}" for line in lines[1:])])
