"""An answer as a terminal shows it while it grows: plain text, broken into rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.cells import cell_len

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """``text`` without the characters that steer a terminal; a tab becomes spaces."""
    return CONTROLS.sub("", text.replace("\t", "    "))


@dataclass
class Rows:
    """Growing text broken into rows of at most ``width()`` cells, at spaces where there are any.

    ``growing`` is the last row, which later text may still change.
    """

    width: Callable[[], int]
    growing: str = ""

    def add(self, text: str) -> list[str]:
        """Append ``text``; returns the rows that are done by it."""
        *whole, last = (self.growing + text).split("\n")
        width = max(1, self.width())
        done = [row for line in whole for row in _broken(line, width)]
        *more, self.growing = _broken(last, width)
        return done + more

    def end(self) -> list[str]:
        """The last row, if there is something in it; what follows begins on a new one."""
        last, self.growing = self.growing, ""
        return [last] if last else []


def rows_of(text: str, width: int) -> list[str]:
    """All rows of a whole text."""
    rows = Rows(lambda: width)
    return rows.add(text) + rows.end()


def _broken(line: str, width: int) -> Iterator[str]:
    while (fits := _fitting(line, width)) < len(line):
        space = line.rfind(" ", 0, fits + 1)
        if space > 0 and line[:space].strip():
            yield line[:space]
            line = line[space + 1 :]
        else:
            yield line[:fits]
            line = line[fits:]
    yield line


def _fitting(line: str, width: int) -> int:
    """How many characters fit, at least one."""
    used = 0
    for count, char in enumerate(line):
        used += cell_len(char)
        if used > width:
            return max(1, count)
    return len(line)
