"""What is released: the same bytes from the same sources, and a core that needs little."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.core_only import COMMAND, core_environment
from tests.package import CORE_CONFIG, ROOT, build, copy_sources, extras

CORE = {"redis", "msgspec", "pydantic-settings", "typer", "rich", "jinja2", "cronsim", "tzdata"}


def sums(*files: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_two_builds_are_the_same_to_the_byte_and_the_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    one, two = copy_sources(tmp_path / "one"), copy_sources(tmp_path / "two")
    for path in two.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600)
    wheel, sdist = build(one)
    assert sums(wheel, sdist) == sums(*build(two))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again, _ = build(tmp_path / sdist.name.removesuffix(".tar.gz"))
    assert sums(wheel) == sums(again)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    wheel, _ = build(copy_sources(tmp_path / "sources"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert {name.split("/")[0] for name in names} == {"rolecall", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert "rolecall/py.typed" in names
    assert "rolecall/template/.env.example" in names
    assert not [name for name in names if name.endswith((".pyc", ".env"))]
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.M)
    assert set(needed) == CORE


def test_every_extra_is_explained_with_what_it_costs() -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z0-9]+)` \|", page, re.M)
    assert sorted(explained) == sorted(set(extras()) - {"dev"})


def test_the_core_runs_agents_on_a_server_without_any_extra(tmp_path: Path, server_url: str) -> None:
    directory, environment = (
        tmp_path / "bot",
        {**core_environment(tmp_path / "site"), "REDIS_URL": server_url, "COLUMNS": "200"},
    )

    def rolecall(*arguments: str | Path) -> str:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=60
        )
        assert (done.stderr, done.returncode) == ("", 0), done.stdout + done.stderr
        return done.stdout

    rolecall("new", directory)
    (directory / "config.py").write_text(CORE_CONFIG)
    here = ("--app", directory)
    command = [*COMMAND, "up", "--no-chat", *map(str, here)]
    up = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        welcome = []
        for line in up.stdout:
            welcome.append(line)
            if line.startswith("talk "):
                break
        assert "not installed: pip install 'rolecall[http]'" in "".join(welcome)
        assert rolecall("ask", "hello", *here) == "echo: hello\n"
    finally:
        up.terminate()
        up.communicate(timeout=30)
