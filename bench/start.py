"""``python -m bench.start``: how long the command line takes to start, in real processes on the bundled server.

``--help``; an ``ask`` beyond the answer, whose time it reports itself; ``up`` until the page says that it is ready, and
its memory at rest. The runs take turns, a bare ``python -c pass`` among them. CPU seconds are less disturbed by what
else the machine does. Exit status 1 with ``--check`` when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROLECALL = str(Path(sys.executable).with_name("rolecall"))
START_SECONDS, REST_SECONDS = 60.0, 3.0
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "GEN_MODEL": "echo@test",
    "HTTP_PORT": "0",
}


@dataclass
class Figure:
    """What is measured, and the bar for its median; CPU seconds stand beside times."""

    name: str
    bar: float | None = None
    unit: str = "s"
    found: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether the median meets the bar."""
        return self.bar is None or statistics.median(self.found) <= self.bar


def measure(runs: int) -> list[Figure]:
    """Every figure."""
    bare, shown, asked = Figure("python -c pass"), Figure("rolecall --help", 0.12), Figure("rolecall ask, beyond", 0.25)
    ready, memory = Figure("rolecall up, warm to ready", 0.6), Figure("rolecall up, resident", 65, "MB")
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        app = str(Path(directory, "app"))
        subprocess.run([ROLECALL, "new", app], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
        with _up(app):  # compiles what is imported and creates the server's files
            _run([ROLECALL, "ask", "hello", "--app", app])
        for _ in range(runs):
            for figure, command in ((bare, [sys.executable, "-c", "pass"]), (shown, [ROLECALL, "--help"])):
                took, cpu, _ = _run(command)
                figure.found.append(took)
                figure.cpu.append(cpu)
            with _up(app) as (pid, took, cpu):
                ready.found.append(took)
                ready.cpu.append(cpu)
                time.sleep(REST_SECONDS)
                memory.found.append(_resident(pid))
                _run([ROLECALL, "ask", "hello", "--app", app])  # the first answer takes longer
                took, cpu, said = _run([ROLECALL, "ask", "hello", "--json", "--app", app])
                asked.found.append(took - json.loads(said)["seconds"])
                asked.cpu.append(cpu)
    return [bare, shown, asked, ready, memory]


def _run(command: list[str]) -> tuple[float, float, str]:
    """Seconds, CPU seconds and what it said."""
    began = time.perf_counter()
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return took, used.ru_utime + used.ru_stime, said


@contextmanager
def _up(app: str) -> Iterator[tuple[int, float, float]]:
    """`rolecall up` that is ready: its process, and the seconds and CPU seconds until then."""
    began = time.perf_counter()
    command = [ROLECALL, "up", "--no-chat", "--app", app]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
            address = next(filter(None, found))[0]
            while not _is_ready(address):
                assert time.perf_counter() - began < START_SECONDS, "it did not become ready"
                time.sleep(0.002)
            yield process.pid, time.perf_counter() - began, _cpu_seconds(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def _is_ready(address: str) -> bool:
    with suppress(URLError), urlopen(f"{address}/health/ready", timeout=START_SECONDS) as answer:
        return bool(answer.status == 200)
    return False


def _cpu_seconds(pid: int) -> float:
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(used[11]) + int(used[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="how often each is measured")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    figures = measure(options.runs)
    print(f"{'':30}{'least':>9}{'median':>9}{'bar':>9}{'CPU s, least':>15}{'median':>9}")
    for one in figures:
        form = ".3f" if one.unit == "s" else ".1f"
        cells = f"{min(one.found):>9{form}}{statistics.median(one.found):>9{form}}"
        cpu = f"{min(one.cpu):>15.3f}{statistics.median(one.cpu):>9.3f}" if one.cpu else " " * 24
        bar = f"{one.bar:>9g}" if one.bar is not None else " " * 9
        print(f"{f'{one.name}, {one.unit}':30}{cells}{bar}{cpu}{'' if one.met else '  missed'}")
    return int(options.check and not all(figure.met for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
