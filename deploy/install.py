"""Install this checkout into the virtual environment that runs this script: ``install.py EXTRA``.

What pip says goes to pip.log in that environment. When it fails, one line says why and what helps. Only uses the
standard library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

NEEDED = 750_000_000
"""Bytes that the environment of ``[all]`` takes."""
ROOMY = 3_000_000_000
"""With less free, pip keeps no copies of what it downloads."""
REACH = "connect to a network, or name a proxy (HTTPS_PROXY=http://host:port) or a package index (PIP_INDEX_URL=…)"
CAUSES = (
    (r"No space left on device|Disk quota exceeded", "the disk is full: {needed} MB are needed and {free} MB are free"),
    (
        r"ProxyError|[Cc]annot connect to proxy|Tunnel connection failed",
        "the proxy cannot be reached or refuses: check HTTPS_PROXY, HTTP_PROXY and `pip config list`",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "the package index has a certificate that is not trusted here: PIP_CERT=/path/to/ca.pem names its authority",
    ),
    (
        r"Retrying \(|NewConnectionError|Temporary failure in name resolution|Network is unreachable|ReadTimeoutError"
        r"|Connection refused",
        f"the package index cannot be reached: {REACH}",
    ),
    (r"Read-only file system|Permission denied", "{place} cannot be written: copy the checkout to where you may write"),
    (
        r"No matching distribution found for ([^\s<>=!~;]+)",
        "the package index has no {match} for Python {python} on {machine}",
    ),
    (r"MemoryError|Killed", "there is not enough memory to install: about 500 MB are needed"),
)
"""A pattern in pip's output, and what to tell people; the first that is found wins."""


def main() -> int:
    """Run pip; its exit status."""
    extra, place = sys.argv[1], Path(sys.prefix)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if shutil.disk_usage(place).free < ROOMY:
        command.append("--no-cache-dir")
    log = place / "pip.log"
    try:
        with log.open("w") as out:
            done = subprocess.run([*command, "-e", f".[{extra}]"], stdout=out, stderr=subprocess.STDOUT)
    except OSError as error:
        print(f"{log} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    if done.returncode == 0:
        return 0
    said = log.read_text(errors="replace") + ("Killed" if done.returncode < 0 else "")
    print(f"Rolecall could not be installed: {cause(said, place)}. What pip said: {log}", file=sys.stderr)
    return 1


def cause(said: str, place: Path) -> str:
    """Why pip failed and what helps, in one line."""
    import platform

    for pattern, text in CAUSES:
        if found := re.search(pattern, said):
            return text.format(
                needed=NEEDED // 1_000_000, free=shutil.disk_usage(place).free // 1_000_000, place=place.parent,
                match=found[1] if found.groups() else "", python=platform.python_version(),
                machine=f"{platform.system()} {platform.machine()}",
            )  # fmt: skip
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    return (errors or ["pip ended without a word"])[-1][:300].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
