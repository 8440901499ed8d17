"""``python -m tests.package``: the wheel as strangers install it, with a stopwatch.

Builds the wheel and installs it into empty environments: by pip, by ``uv tool`` and by pipx where they are there. In
each one `rolecall new` and `rolecall up` must answer a question. Prints what the core and each extra cost. ``--extras``
only measures the extras, ``--install`` only installs, ``--wheels`` only asks for which platforms there are wheels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.applications import clean_environment
from tests.valkey import ValkeyProcess

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".env.example", "agents", "src")
"""What a build reads."""
QUESTION, ANSWER = "What is the capital of France?", "Paris"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "aarch64-apple-darwin",
    "x86_64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
NOT_MEASURED = ("all", "dev", "browser", "docs", "release")
IMPORT = "import time; t = time.process_time(); import rolecall; rolecall.Agent; print(time.process_time() - t)"
CORE_CONFIG = """\
from agents.manager import ManagerAgent
from agents.samplellm import SampleLLMAgent
from rolecall import Config, Role

config = Config(roles=(Role(ManagerAgent), Role(SampleLLMAgent, models=("echo@test",))))
"""


def copy_sources(directory: Path) -> Path:
    """The sources of the package in ``directory``, without what runs left among them."""
    directory.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(ROOT / name, directory / name)
    return directory


def build(sources: Path, *, epoch: str = "1700000000") -> tuple[Path, Path]:
    """The wheel and the sdist of ``sources``, in its directory dist."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", "dist", "-t", "sdist", "-t", "wheel"]
    environment = {**clean_environment(), "SOURCE_DATE_EPOCH": epoch}
    subprocess.run(command, cwd=sources, env=environment, check=True, capture_output=True)
    (wheel,), (sdist,) = (sources / "dist").glob("*.whl"), (sources / "dist").glob("*.tar.gz")
    return wheel, sdist


def extras() -> Mapping[str, list[str]]:
    """What each extra installs, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: Mapping[str, list[str]] = project["optional-dependencies"]
    return found


@contextmanager
def stopwatch(what: str) -> Iterator[None]:
    """Print how long the block took."""
    began = time.monotonic()
    yield
    print(f"{what:<52} {time.monotonic() - began:6.1f} s", flush=True)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """The output of a command that must succeed; pip, uv and pipx keep the settings of this machine."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def megabytes(directory: Path) -> float:
    """The size of the files in ``directory``, each counted once."""
    files = {path.stat().st_ino: path.stat().st_size for path in directory.rglob("*") if path.is_file()}
    return sum(files.values()) / 1e6


def first_answer(rolecall: Path, directory: Path, question: str, **environment: str) -> str:
    """`rolecall new`, `rolecall up` and the answer to the first question."""
    run(rolecall, "new", directory)
    return answered(rolecall, directory, question, **environment)


def answered(rolecall: Path, directory: Path, question: str, **environment: str) -> str:
    """The answer to ``question`` of `rolecall up` in ``directory``, which is stopped again."""
    environ = {**clean_environment(), **environment}
    up = subprocess.Popen(
        [rolecall, "up", "--no-chat"],
        cwd=directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert up.stdout is not None
        next(line for line in up.stdout if line.startswith("talk "))
        return run(rolecall, "ask", question, cwd=directory, **environment)
    finally:
        up.terminate()
        up.communicate(timeout=60)


def by_pip(wheel: Path, place: Path, **environment: str) -> Path:
    run(sys.executable, "-m", "venv", place)
    run(place / "bin/python", "-m", "pip", "install", "-q", f"{wheel}[all]", cwd=None, **environment)
    return place / "bin/rolecall"


def by_uv(wheel: Path, place: Path, **environment: str) -> Path:
    run("uv", "tool", "install", "-q", "--python", sys.executable, f"{wheel}[all]",
        cwd=None, UV_TOOL_DIR=str(place), UV_TOOL_BIN_DIR=str(place / "bin"), **environment)  # fmt: skip
    return place / "bin/rolecall"


def by_pipx(wheel: Path, place: Path, **environment: str) -> Path:
    run("pipx", "install", "--python", sys.executable, f"{wheel}[all]",
        cwd=None, PIPX_HOME=str(place), PIPX_BIN_DIR=str(place / "bin"), **environment)  # fmt: skip
    return place / "bin/rolecall"


INSTALLERS: Mapping[str, Callable[..., Path]] = {"pip": by_pip, "uv tool": by_uv, "pipx": by_pipx}


def install_everywhere(wheel: Path, directory: Path) -> None:
    """Each installer, and the first answer of what it installed: with a home that is empty, and once more with what the
    first time left there, the packages and the weights."""
    for name, install in INSTALLERS.items():
        if shutil.which(name.split()[0]) is None:
            print(f"{name}: not installed here, left out")
            continue
        home = directory / f"home-{name.replace(' ', '-')}"
        home.mkdir()
        for cache in ("cold", "warm"):
            place, bot = directory / f"{home.name}-{cache}", directory / f"bot-{home.name}-{cache}"
            with stopwatch(f"{name}, {cache}: from nothing to the first answer"):
                with stopwatch(f"{name}, {cache}: install rolecall[all]"):
                    rolecall = install(wheel, place, HOME=str(home))
                with stopwatch(f"{name}, {cache}: rolecall new, up, first answer"):
                    answer = first_answer(rolecall, bot, QUESTION, HOME=str(home))
            assert ANSWER in answer, answer
            shutil.rmtree(place)


def check_wheels() -> None:
    """Whether every library of ``rolecall[all]`` has a wheel for each Python and platform, as uv resolves them."""
    for platform in PLATFORMS:
        found = []
        for python in PYTHONS:
            command = ["uv", "pip", "compile", "-q", "--only-binary", ":all:", "--python-version", python]
            command += ["--python-platform", platform, "--extra", "all", str(ROOT / "pyproject.toml")]
            done = subprocess.run(command, capture_output=True, text=True)
            found.append(f"{python} {'yes' if done.returncode == 0 else 'no'}")
        print(f"{platform:<28} {'   '.join(found)}", flush=True)


def measure_core(wheel: Path, directory: Path) -> Path:
    """A venv with the core alone, its cost, and agents at work in it on a server."""
    place = directory / "core"
    run(sys.executable, "-m", "venv", place)
    empty = megabytes(place)
    with stopwatch("core: install"):
        run(place / "bin/python", "-m", "pip", "install", "-q", wheel)
    seconds = min(float(run(place / "bin/python", "-c", IMPORT)) for _ in range(3))
    print(f"core: {megabytes(place) - empty:.0f} MB, import rolecall and Agent {seconds:.2f} s of CPU")
    application = directory / "core-bot"
    run(place / "bin/rolecall", "new", application)
    (application / "config.py").write_text(CORE_CONFIG)
    with tempfile.TemporaryDirectory(prefix="rc") as data:
        server = ValkeyProcess(Path(data))
        server.start()
        try:
            answer = answered(place / "bin/rolecall", application, "hello", REDIS_URL=server.url)
        finally:
            server.kill()
    assert answer.strip() == "echo: hello", answer
    print("core: agents answer on a server of one's own")
    return place


def measure_extras(core: Path, wheel: Path, directory: Path) -> None:
    """What each extra adds to the core, in MB on disk and seconds of pip with a warm cache."""
    print("extra           MB      s")
    for extra in sorted(set(extras()) - set(NOT_MEASURED)):
        place = directory / f"extra-{extra}"
        shutil.copytree(core, place, symlinks=True)
        before, began = megabytes(place), time.monotonic()
        # The interpreter of the copy, not its scripts: those name the original.
        run(place / "bin/python", "-m", "pip", "install", "-q", f"{wheel}[{extra}]")
        print(f"{extra:<12} {megabytes(place) - before:6.0f} {time.monotonic() - began:6.1f}", flush=True)
        shutil.rmtree(place)


def main() -> None:
    """Everything, or what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.package", description=__doc__)
    parser.add_argument("--extras", action="store_true", help="only what the core and the extras cost")
    parser.add_argument("--install", action="store_true", help="only the installers and their first answers")
    parser.add_argument("--wheels", action="store_true", help="only for which platforms every library has a wheel")
    asked = parser.parse_args()
    if asked.wheels:
        return check_wheels()
    with tempfile.TemporaryDirectory(prefix="rc") as made:
        directory = Path(made)
        wheel, sdist = build(copy_sources(directory / "sources"))
        print(f"{wheel.name} {wheel.stat().st_size / 1e6:.1f} MB, {sdist.name} {sdist.stat().st_size / 1e6:.1f} MB")
        if not asked.install:
            core = measure_core(wheel, directory)
            measure_extras(core, wheel, directory)
        if not asked.extras:
            install_everywhere(wheel, directory)


if __name__ == "__main__":
    main()
