"""docs/first-frontend.md: its front end is extracted and run by `rolecall up` against a chat system made of files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/first-frontend.md").read_text(encoding="utf-8")
CLIENT = """
import asyncio, pathlib
from dataclasses import dataclass

PLACE = pathlib.Path(__file__).parent

@dataclass
class Message:
    id: str
    channel: str
    author: str
    text: str

class Client:
    def __init__(self):
        self.closed = asyncio.Event()

    async def messages(self):
        seen = 0
        while not self.closed.is_set():
            said = (PLACE / "said.txt").read_text().splitlines()
            for number, line in enumerate(said[seen:], seen):
                yield Message(str(number), "general", "ann", line)
            seen = len(said)
            await asyncio.sleep(0.05)

    async def send(self, channel, text):
        with (PLACE / "shown.txt").open("a") as file:
            file.write(f"#{channel} {text}\\n")

    async def close(self):
        self.closed.set()
"""


async def test_the_front_end_of_the_page_answers_in_its_channel(tmp_path: Path) -> None:
    for name in ("parrot.py", "config.py"):
        (source,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)
        (tmp_path / name).write_text(source, encoding="utf-8")
    (tmp_path / "parrot_client.py").write_text(CLIENT)
    (tmp_path / "said.txt").write_text("Polly\nwants a cracker\n")
    shown = tmp_path / "shown.txt"
    shown.write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "ROLECALL_"))}
    command = [sys.executable, "-c", "from rolecall.cli import main; main()", "up", "--no-chat"]
    working = subprocess.Popen(
        command, cwd=tmp_path, env={**environment, "HTTP_PORT": "0"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wanted = "#general Polly\n#general wants a cracker\n"
        await wait_until(lambda: shown.read_text() == wanted or working.poll() is not None, seconds=30)
        assert shown.read_text() == wanted
    finally:
        working.send_signal(signal.SIGTERM)
        _, log = working.communicate(timeout=20)
    assert working.returncode == 0, log
