"""The version of this package, and what other installed packages add to it through entry points."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from rolecall.errors import ConfigError

__version__ = "0.1.0"


def plugins(group: str, kind: str) -> dict[str, Any]:
    """What installed packages add under the entry point group ``group``, by name; ``kind`` is what a message calls it.

    Raises ConfigError, in one line that names the package, for one that cannot be loaded or a name used twice.
    """
    found: dict[str, Any] = {}
    for point in _installed(tuple(sys.path)).select(group=group):
        package = point.dist.name if point.dist is not None else point.module
        if point.name in found:
            raise ConfigError(f"{kind} {point.name!r} of package {package}: another package has one of this name")
        try:
            found[point.name] = point.load()
        except Exception as error:  # the boundary: the package is somebody else's code
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{kind} {point.name!r} of package {package} cannot be loaded: {reason}") from error
    return found


@cache
def _installed(path: Sequence[str]) -> Any:
    """The entry points of all packages on ``path``. To find any, Python reads a file of each package."""
    return entry_points()
