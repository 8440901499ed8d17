"""The pods of the manifests as they are run there: each command under its user, without capabilities, on a read-only
root file system with the writable directories that it is given; ready by its own probe, gone within its grace period.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rolecall.frontends.sockets import listen
from tests.unit.test_kubernetes import MANIFESTS, pods, render, settings_of
from tests.valkey import ValkeyProcess
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
COMMAND = f"{sys.executable} -c 'from rolecall.cli import main; main()'"
LEAST = "setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
KEY = "rk_" + "x" * 40

pytestmark = [
    pytest.mark.skipif("ROLECALL_PODS" not in os.environ, reason="starts every pod; a part of make proof"),
    pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="only root may mount"),
    pytest.mark.timeout(180),
]


def reachable_python() -> list[str]:
    """Mounts that let any user run this Python, should it live in the home directory of root."""
    prefix = Path(sys.base_prefix)
    if Path("/root") not in prefix.parents:
        return []
    hidden = f"mount --bind {prefix} /mnt && mount -t tmpfs -o mode=755 none /root && mkdir -p {prefix}"
    return [hidden, f"mount --bind /mnt {prefix}"]


class Pod:
    """One container: what Kubernetes would do with its spec, in a mount namespace of its own."""

    def __init__(self, spec: dict[str, Any], app: Path, environment: dict[str, str]) -> None:
        (self.container,) = spec["containers"]
        self.grace = spec["terminationGracePeriodSeconds"]
        self._app, self._environment = app, environment
        self.log = app.parent / f"{spec['containers'][0]['command'][-1]}-{id(self)}.log"
        writable = {mount["mountPath"]: mount.get("readOnly", False) for mount in self.container["volumeMounts"]}
        assert set(writable) <= {"/tmp", "/app/.rolecall", "/app/log"}
        before, after = reachable_python(), list[str]()
        for path, read_only in writable.items():
            place = app.parent / "tmp" if path == "/tmp" else app / path.removeprefix("/app/")
            if path == "/app/log":
                before.append(f"mount --bind {app.parent / 'volume'} {place}")
                after += [f"mount -o remount,bind,ro {place}"] if read_only else []
            else:
                after.append(f"mount -t tmpfs -o mode=1777 none {place}")
        script = [*before, "mount -o remount,bind,ro /", *after]
        self._script = " && ".join([*script, f"cd {app}"])
        self.process = self._started(self.container["command"])

    def _started(self, command: list[str]) -> subprocess.Popen[bytes]:
        assert command[0] == "rolecall"
        line = f"{self._script} && exec {LEAST} {COMMAND} {shlex.join(command[1:])}"
        with self.log.open("ab") as log:
            return subprocess.Popen(["unshare", "-m", "sh", "-c", line], env=self._environment, stdout=log, stderr=log)

    async def probe(self, command: list[str]) -> bool:
        """The exit status of an exec probe."""
        probe = self._started(command)
        return await asyncio.to_thread(probe.wait) == 0

    async def stop(self) -> float:
        """SIGTERM, and how long it took to end well."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.process.wait, self.grace)
        assert status == 0, self.log.read_text()
        return time.monotonic() - began


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rc"))
    directory.chmod(0o755)
    for name in ("tmp", "volume", "app/log", "app/.rolecall"):
        (directory / name).mkdir(parents=True)
    os.chown(directory / "volume", 1000, 1000)
    shutil.copy(ROOT / "config.py", directory / "app")
    shutil.copytree(ROOT / "agents", directory / "app/agents", ignore=shutil.ignore_patterns("__pycache__"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


async def test_every_pod_works_as_the_manifests_run_it(place: Path) -> None:
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as two:
        ports = one.getsockname()[1], two.getsockname()[1]
    server = ValkeyProcess(place / "tmp", port=ports[0])
    manifests = render(MANIFESTS / "overlays/production")
    given = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")},
        "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
        "HOME": str(place / "tmp"), "TMPDIR": str(place / "tmp"), "ROLECALL_APP": str(place / "app"),
        **settings_of(manifests), "HTTP_PORT": str(ports[1]), "GEN_MODEL": "echo@test", "HTTP_KEY": KEY,
        "REDIS_URL": f"redis://127.0.0.1:{ports[0]}/0",
    }  # fmt: skip
    server.start()
    specs = {name: spec for name, spec in pods(manifests) if name != "telegram"}
    running = {name: Pod(spec, place / "app", given) for name, spec in specs.items()}
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ports[1]}", trust_env=False, timeout=30) as client:
            ready = running["front"].container["readinessProbe"]["httpGet"]["path"]

            said: list[str] = []

            async def is_ready() -> bool:
                for name, pod in running.items():
                    assert pod.process.poll() is None, (name, pod.log.read_text())
                try:
                    said.append((await client.get(ready)).text)
                except httpx2.TransportError as error:
                    said.append(str(error))
                await asyncio.sleep(0.5)
                return '"status":"ok"' in said[-1]

            try:
                await wait_until(is_ready, seconds=90)
            except AssertionError:
                raise AssertionError([said[-1], *(pod.log.read_text()[-1500:] for pod in running.values())]) from None
            for name in ("route", "answer", "scribe"):
                assert await running[name].probe(running[name].container["readinessProbe"]["exec"]["command"]), name
            key = {"authorization": f"Bearer {KEY}"}
            answer = await client.post("/chat", json={"text": "hello there"}, headers=key)
            assert answer.status_code == 200 and "hello there" in answer.json()["text"]

            async def written() -> bool:
                return "hello there" in "".join(path.read_text() for path in (place / "volume").rglob("*.log"))

            await wait_until(written, seconds=20)
            shown = await client.get("/conversations", headers=key)
            assert shown.status_code == 200 and len(shown.json()["conversations"]) == 1, shown.text
        for name, pod in running.items():
            assert await pod.stop() < pod.grace, name
    finally:
        for pod in running.values():
            pod.process.kill()
            pod.process.wait()
        server.kill()
