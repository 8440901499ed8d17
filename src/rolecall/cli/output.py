"""Rows of text in columns, as calm and as easy to cut apart as `ls -l`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rolecall.bus.process.processes import process_name
from rolecall.cli.runner import load_quietly
from rolecall.redis.server import PATIENCE_SECONDS
from rolecall.session import Session, open_session

GAP = "  "


class PipedConsole(Console):
    """A console whose reader may have enough, as ``head`` has. Rich would end the process with status 1 then."""

    def on_broken_pipe(self) -> None:
        """See Console. Raises BrokenPipeError."""
        raise BrokenPipeError


def columns(rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> list[str]:
    """The rows as lines; the columns numbered in ``right`` are flush right, the last one is never padded."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return [GAP.join(_padded(row, widths, right)).rstrip() for row in cells]


def counted(count: int, noun: str) -> str:
    """``1 turn``, ``2 turns``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Each line as it is: no markup, no wrapping, nothing coloured by guess. Where there is no terminal, without rich,
    which takes 0.1 ms a line."""
    if not console.is_terminal:
        console.file.writelines(f"{line}\n" for line in lines)
        console.file.flush()
        return
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)


def print_table(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> None:
    """``rows`` under a dim ``head``."""
    first, *rest = columns([head, *rows], right=right)
    print_lines(console, [first], style="dim")
    print_lines(console, rest)


def _padded(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    pads = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
    return [pad + cell if n in right else cell + pad for n, (cell, pad) in enumerate(zip(row, pads, strict=True))]


@asynccontextmanager
async def visiting(app_dir: Path | None, *, patience: float = PATIENCE_SECONDS) -> AsyncIterator[Session]:
    """The server that the application's processes use; none is started. Raises NothingRunning, ServerUnavailable,
    ConfigError."""
    application = load_quietly(app_dir)
    async with open_session(application, process_name(), start=False, patience=patience) as session:
        yield session
