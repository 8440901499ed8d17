"""The command line as if only the core were installed, without its extras."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.applications import clean_environment

SOURCES = Path(__file__).resolve().parents[1] / "src"
COMMAND = (sys.executable, "-S", "-c", "import sys; sys.argv[0] = 'rolecall'; from rolecall.cli import main; main()")
"""Python without its site-packages."""


def core() -> set[str]:
    """The distributions that ``pip install rolecall`` brings, with all that they need."""
    found, waiting = set[str](), ["rolecall", "hiredis"]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # not for this Python or platform
            continue
        found.add(name)
        waiting += [re.split(r"[\[<>=!~; (]", line)[0] for line in needed if "extra ==" not in line]
    return found


def core_environment(directory: Path) -> dict[str, str]:
    """An environment for COMMAND: ``directory`` is filled with links to what the core needs."""
    directory.mkdir()
    for name in core() - {"rolecall"}:
        found = distribution(name)
        for part in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (directory / part).exists():
                (directory / part).symlink_to(Path(str(found.locate_file(part))))
    return {**clean_environment(), "PYTHONPATH": f"{SOURCES}{os.pathsep}{directory}"}
