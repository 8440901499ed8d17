"""`rolecall new`: an application directory to begin with."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console

from rolecall.cli.output import print_lines
from rolecall.errors import ConfigError

LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")


def new(directory: Path, console: Console) -> int:
    """Copy the template to ``directory``, which must be empty or not there yet, and say how to go on."""
    try:
        _check_empty(directory)
        with as_file(files("rolecall") / "template") as template:
            # Contents alone: an installed package may be read-only, its copy must not be.
            shutil.copytree(template, directory, ignore=LEFT_OUT, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made: {error.strerror or error}") from error
    print_lines(console, [f"A new application is in {directory}. Next:", ""])
    print_lines(console, [f"  cd {directory}", "  rolecall check", "  rolecall up"])
    return 0


def _check_empty(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file: expected a directory that is empty or does not exist")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: expected a directory that is empty or does not exist")
