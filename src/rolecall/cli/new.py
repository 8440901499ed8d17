"""`rolecall new`: create an application directory."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path
from shlex import quote

from rich.console import Console

from rolecall.cli.output import print_lines
from rolecall.errors import ConfigError

IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache")


def new(directory: Path, console: Console) -> int:
    """Copy the template to ``directory``, which must be empty or not exist, and print the next steps."""
    try:
        _check_empty(directory)
        fill(directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be created: {error.strerror or error}") from error
    print_lines(console, [f"A new application is in {directory}. Next:", ""])
    print_lines(console, [f"  cd {quote(str(directory))}", "  rolecall check", "  rolecall up"])
    return 0


def fill(directory: Path) -> None:
    """Copy the template to ``directory``. The wheel contains all of it; a checkout shares its agents and .env.example
    with the application at its root, so they are copied from there. Both give the same files."""
    with as_file(files("rolecall")) as package:
        _copy(package / "template", directory)
        root = package.parents[1]
        if not (package / "template" / ".env.example").exists():
            _copy(root / "agents", directory / "agents")
            shutil.copyfile(root / ".env.example", directory / ".env.example")


def _copy(source: Path, destination: Path) -> None:
    # Only contents: an installed package may be read-only, its copy must not be.
    shutil.copytree(source, destination, ignore=IGNORED, copy_function=shutil.copyfile, dirs_exist_ok=True)


def _check_empty(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file: expected a directory that is empty or does not exist")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty: expected a directory that is empty or does not exist")
