"""A deployment by docker-compose.yml in a directory of its own, driven as its user would: commands and HTTP."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[2]
NEEDED = ("Dockerfile", "docker-compose.yml", ".dockerignore", ".env.example", "pyproject.toml", "README.md", "LICENSE",
          "config.py", "agents", "src", "deploy")  # fmt: skip
PROJECT = "rolecall-proof"
USER = 1000


class Failed(Exception):
    """Something was not as it should be."""


class Lab:
    """``COMPOSE`` and ``ENGINE`` in the environment name other programs than ``docker compose`` and ``docker``."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.profiles: tuple[str, ...] = ()
        self.files: tuple[str, ...] = ("docker-compose.yml",)
        self.environ: dict[str, str] = {"HTTP_PORT": str(port)}
        self.began = time.monotonic()
        self._compose = shlex.split(os.environ.get("COMPOSE", "docker compose"))
        self._engine = shlex.split(os.environ.get("ENGINE", "docker"))
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(source, directory / name, symlinks=True, ignore=ignored)
            else:
                shutil.copyfile(source, directory / name)
        (directory / "log").mkdir()

    def say(self, line: str) -> None:
        """One line of the report."""
        print(f"[{time.monotonic() - self.began:6.1f}s] {line}", flush=True)

    def own_the_log(self) -> None:
        """Give the directory of the transcripts to the user of the containers."""
        if os.getuid() == 0:
            os.chown(self.directory / "log", USER, USER)
        else:
            self.environ |= {"ROLECALL_UID": str(os.getuid()), "ROLECALL_GID": str(os.getgid())}

    def compose(self, *words: str, check: bool = True, timeout: float = 400, stdin: Path | None = None) -> str:
        """Run a command of Compose; what it and the services said."""
        files = [part for name in self.files for part in ("-f", name)]
        profiles = [part for name in self.profiles for part in ("--profile", name)]
        return self._run([*self._compose, "-p", PROJECT, *files, *profiles, *words], check, timeout, stdin)

    def engine(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """Run a command of the container engine."""
        return self._run([*self._engine, *words], check, timeout)

    def up(self, *words: str) -> None:
        """Start what is not started, as somebody who followed docs/deploy.md."""
        self.own_the_log()
        self.compose("up", "-d", "--no-build", *words)

    def clear(self) -> None:
        """Remove all of the project, what is just being restarted included."""
        self.profiles = ("local", "operator")
        self.compose("down", "-v", "-t", "5", check=False)
        left = self.engine("ps", "-a", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        if left:
            self.engine("rm", "-f", *left, check=False)
            self.compose("down", "-v", "-t", "5", check=False)
        self.profiles = ()

    def containers(self, service: str) -> list[str]:
        """Names of the service's running containers."""
        label = f"label=com.docker.compose.service={service}"
        ours = f"label=com.docker.compose.project={PROJECT}"
        return self.engine("ps", "--filter", ours, "--filter", label, "--format", "{{.Names}}").split()

    def execute(self, service: str, *words: str, check: bool = True) -> str:
        """Run a command in the service's first container."""
        return self.engine("exec", self.containers(service)[0], *words, check=check)

    def logs(self, service: str) -> str:
        """What all containers of the service said."""
        return "\n".join(self.engine("logs", name, check=False) for name in self.containers(service))

    def key(self) -> str:
        """The API key that init made."""
        return self.execute("front", "cat", "/run/secrets/http-key").strip()

    def client(self) -> httpx2.Client:
        """HTTP with the API key."""
        headers = {"authorization": f"Bearer {self.key()}"}
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=90)

    def ready(self, seconds: float = 90) -> None:
        """Until a message sent now would be answered."""
        self.until(lambda: self._health() == 200, "it is ready", seconds)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Until ``condition``; raises Failed when it takes longer."""
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                raise Failed(f"not within {seconds:g} s: {what}")
            time.sleep(0.2)

    def _health(self) -> int:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code
        except httpx2.HTTPError:
            return 0

    def _run(self, command: list[str], check: bool, timeout: float, stdin: Path | None = None) -> str:
        environ: Mapping[str, str] = {**os.environ, **self.environ}
        with stdin.open("rb") if stdin else open(os.devnull, "rb") as source:
            done = subprocess.run(
                command, cwd=self.directory, env=environ, stdin=source, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=timeout,
            )  # fmt: skip
        said = done.stdout.decode(errors="replace")
        if check and done.returncode:
            raise Failed(f"{' '.join(command[-6:])}: exit status {done.returncode}:\n{said[-3000:]}")
        return said


def expect(condition: object, what: str, found: Any = "") -> None:
    """Raise Failed unless ``condition``."""
    if not condition:
        raise Failed(f"{what}: {str(found)[:2000]}")
