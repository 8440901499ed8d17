"""OpenAI's own client for Python on a real server: every feature that docs/clients.md names.

`make test-clients` tries the others, each in an environment of its own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.clients.__main__ import CLIENTS, PAGE, SCRIPTS
from tests.clients.server import run, served


async def test_every_feature_of_the_table_works_with_openais_own_client(tmp_path: Path) -> None:
    async with served(tmp_path / "app") as url:
        status, said = await run([sys.executable, str(SCRIPTS / "use_openai.py")], url, tmp_path)
    found = [json.loads(line) for line in said.splitlines() if line.startswith('{"feature"')]
    assert status == 0, said
    assert [one for one in found if not one["works"]] == []
    row = re.search(r"^\| openai \(Python\) \|[^|]*\| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None and row[1].split(", ") == [one["feature"] for one in found]


def test_every_client_has_its_row() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [client.title for client in CLIENTS.values()] == rows[1:]
