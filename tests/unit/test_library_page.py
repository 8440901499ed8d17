"""docs/library.md: its FastAPI application is extracted and run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")


def test_the_fastapi_application_of_the_page_answers(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n# app\.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "app.py").write_text(source, encoding="utf-8")
    (tmp_path / "ask.py").write_text(
        "import asyncio, httpx, socket, uvicorn\n"
        "from app import app\n"
        "async def main():\n"
        "    with socket.create_server(('127.0.0.1', 0)) as listening:\n"
        "        server = uvicorn.Server(uvicorn.Config(app, log_level='warning'))\n"
        "        serving = asyncio.create_task(server.serve(sockets=[listening]))\n"
        "        while not server.started:\n"
        "            await asyncio.sleep(0.02)\n"
        "        port = listening.getsockname()[1]\n"
        "        async with httpx.AsyncClient(trust_env=False) as client:\n"
        "            print((await client.get(f'http://127.0.0.1:{port}/shout?text=hello')).text)\n"
        "        server.should_exit = True\n"
        "        await serving\n"
        "asyncio.run(main())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "ROLECALL_"))}
    done = subprocess.run(
        [sys.executable, "ask.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == '"HELLO"', done.stderr
    shown = re.search(r"curl .*shout.*\n(.*)\n", PAGE)
    assert shown is not None and shown[1] == done.stdout.strip()
