"""The pictures of the README, from a real run: ``python -m tests.pictures [DIRECTORY]`` (default: docs/images).

``terminal.svg`` shows the command line with the small local model; ``page.png`` the web page, when a Chromium is there.
"""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 120, 60
ROLECALL = [sys.executable, "-c", "from rolecall.cli import main; main()"]
QUESTION = "What is the capital of France?"


@contextmanager
def application() -> Iterator[Path]:
    """A new application at work, as ``rolecall new`` and ``rolecall up`` make it."""
    with tempfile.TemporaryDirectory(prefix="rolecall-pictures-") as directory:
        place = Path(directory) / "bot"
        subprocess.run([*ROLECALL, "new", str(place)], check=True, stdout=subprocess.DEVNULL)
        environment = {**os.environ, "HTTP_PORT": "0", "ROLECALL_APP": str(place)}
        working = subprocess.Popen(
            [*ROLECALL, "up", "--no-chat"],
            cwd=place,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_an_answer(place)
            yield place
        finally:
            working.terminate()
            working.wait(30)


def _wait_for_an_answer(place: Path) -> None:
    give_up = time.monotonic() + 180
    asking = [*ROLECALL, "ask", "Hello!"]
    while subprocess.run(asking, cwd=place, capture_output=True, check=False).returncode:
        if time.monotonic() > give_up:
            raise SystemExit("the application did not answer within 180 s")
        time.sleep(0.5)


def shown(place: Path, *arguments: str) -> str:
    """What a terminal shows of ``rolecall ARGUMENTS``, colours included."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
    running = subprocess.Popen(
        [*ROLECALL, *arguments], cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    pieces: list[bytes] = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # how Linux says that the other end is closed
        pass
    running.wait(60)
    os.close(ours)
    return b"".join(pieces).decode(errors="replace").replace("\r\n", "\n")


def draw_terminal(into: Path) -> None:
    """A question, what became of it, and who did what."""
    with application() as place:
        lines = [f"$ rolecall ask {QUESTION!r}", shown(place, "ask", QUESTION)]
        conversation = re.findall(r"terminal:ask-[0-9a-f]+", shown(place, "logs"))[-1]
        lines += [f"\n$ rolecall logs {conversation}", shown(place, "logs", conversation)]
        lines += [f"\n$ rolecall logs {conversation} --timeline", shown(place, "logs", conversation, "--timeline")]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for text in lines:
        console.print(Text.from_ansi(text.rstrip("\n")))
    console.save_svg(str(into / "terminal.svg"), title="rolecall")


async def draw_page(into: Path) -> None:
    """A conversation on the web page."""
    from tests.browser.browser import browsing
    from tests.browser.stage import staged

    async with browsing() as browser:
        with tempfile.TemporaryDirectory(prefix="rolecall-pictures-") as directory:
            async with staged(Path(directory)) as stage:
                await stage.ask_all("http:local:web-guide", ["Hello!", "How does a message travel here?"])
                page = await browser.new_page(viewport={"width": 1280, "height": 860})
                await page.goto(f"{stage.url}/#web-guide")
                await page.get_by_text("exactly once").wait_for()
                await page.wait_for_timeout(500)
                await page.screenshot(path=into / "page.png")


def main() -> None:
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs/images"
    into.mkdir(parents=True, exist_ok=True)
    draw_terminal(into)
    asyncio.run(draw_page(into))


if __name__ == "__main__":
    main()
