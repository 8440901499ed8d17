"""`rolecall http`, `rolecall key` and `rolecall health` as processes: they begin, share the work, and end together."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.applications import clean_environment, make_application, run_rolecall, running
from tests.command_line import Fork, start_verb
from tests.waiting import alive, wait_until


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[tuple[Fork, str]]:
    """`rolecall http` on a free port, its address, and what it logs in ``log`` of ``directory``; ended at the end."""
    log = directory / "log.txt"
    with (directory / "said.txt").open("wb") as out, log.open("wb") as err:
        process = start_verb(["http", "--app", directory, "--port", "0", *options], clean_environment(), out, err)
        try:
            soon(lambda: "\n" in Path(out.name).read_text() or process.poll() is not None)
            found = re.search(r"http://\S+", Path(out.name).read_text())
            assert found, log.read_text()
            yield process, found[0]
        finally:
            process.terminate()
            process.wait(30)


def soon(condition: Callable[[], bool], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def workers(directory: Path) -> list[int]:
    """The pids of those that serve, as logged."""
    lines = [json.loads(line) for line in (directory / "log.txt").read_text().splitlines()]
    found = (re.fullmatch(r"http: pid (\d+) serves", line["text"]) for line in lines)
    return [int(match[1]) for match in found if match]


def test_several_processes_serve_one_address_start_again_and_end_together_with_their_streams(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    with serving(directory, "--workers", "2") as (process, url):
        soon(lambda: len(workers(directory)) == 2)
        assert f"parent pid {process.pid}" in (directory / "log.txt").read_text()
        os.kill(workers(directory)[0], signal.SIGKILL)
        soon(lambda: len(workers(directory)) == 3)
        question = {"text": "nobody is there to answer"}
        with httpx2.Client(base_url=url) as idle, httpx2.stream("POST", f"{url}/chat/stream", json=question) as stream:
            idle.get("/health/live")  # an open connection keeps nobody
            lines = stream.iter_lines()
            assert any("snapshot" in line for line in lines)
            process.send_signal(signal.SIGINT)
            assert not any("failed" in line for line in lines)  # the stream ends whole; its turn goes on
            assert process.wait(15) == 0
        assert not any(alive(pid) for pid in workers(directory))


def test_others_are_let_in_only_with_a_key_and_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    refused = run_rolecall("http", "--host", "0.0.0.0", "--app", directory)
    assert refused.returncode == 2
    assert "rolecall key new" in refused.stderr and "Traceback" not in refused.stderr
    secret = run_rolecall("key", "new", "ann", "--admin", "--app", directory).stdout.strip()
    with serving(directory, "--host", "0.0.0.0", "--workers", "2") as (process, url):
        soon(lambda: len(workers(directory)) == 2)
        assert httpx2.get(f"{url}/info").status_code == 401
        assert httpx2.get(f"{url}/info", headers={"authorization": f"Bearer {secret}"}).status_code == 200
        listed = run_rolecall("key", "list", "--json", "--app", directory).stdout
        key = json.loads(listed)
        assert key["name"] == "ann" and secret not in listed
        assert run_rolecall("key", "revoke", key["id"], "--app", directory).returncode == 0
        soon(lambda: httpx2.get(f"{url}/info", headers={"authorization": f"Bearer {secret}"}).status_code == 401)
        process.kill()
        soon(lambda: not any(alive(pid) for pid in workers(directory)))


def test_up_serves_beside_its_agents_at_the_next_free_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        directory = make_application(tmp_path, dotenv=f"HTTP_PORT={port}\n")
        with running(directory):
            asyncio.run(wait_until(lambda: not run_rolecall("health", "http", "--app", directory).returncode))
            for candidate in range(port + 1, port + 20):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", candidate)):
                        continue
                answer = httpx2.get(f"http://127.0.0.1:{candidate}/health/ready")
                if answer.status_code == 200 and answer.json()["status"] == "ok":
                    return
    raise AssertionError("no server answered at a port near by")


def test_without_its_libraries_up_goes_on_and_http_says_what_to_install(tmp_path: Path) -> None:
    directory = make_application(tmp_path)
    code = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "import importlib.util as util\nfound = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'fastapi' else found(name, *rest)\n"
        f"sys.argv = ['rolecall', 'http', '--app', {str(directory)!r}]\n"
        "from rolecall.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30,
                           env=clean_environment(), stdin=subprocess.DEVNULL)  # fmt: skip
    assert ended.returncode == 2 and "rolecall[http]" in ended.stderr
