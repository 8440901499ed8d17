"""What is installed with Rolecall may be used and is not known to be vulnerable: ``audit.py licences|advisories``.

``licences`` looks at the distributions of ``rolecall[all]`` in this environment, without a network. ``advisories`` asks
for those of deploy/lock/rolecall.txt. Prints one line for each fault; exit status 1 for a fault, 2 if nothing could be
asked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).parent / "lock" / "rolecall.txt"
ALLOWED = r"MIT(-0)?|Apache|BSD|ISC|MPL|Mozilla|PSF|Python Software Foundation|Unlicense|Zlib|0BSD|Public Domain|CC0"
"""Licences that ask for no more than to be named, and MPL, which covers its own files only."""
EXCEPTIONS: Mapping[str, str] = {"python-telegram-bot": "LGPL-3.0: used as it is, by the extra telegram only"}


def needed(root: str = "rolecall", extra: str = "all") -> set[str]:
    """The distributions that ``root[extra]`` brings to this machine, with all that they need."""
    found, waiting = dict[str, frozenset[str]](), [(root, frozenset([extra]))]
    while waiting:
        name, extras = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if extras <= found.get(key, frozenset()) and key in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # not for this Python or platform
            continue
        found[key] = found.get(key, frozenset()) | extras
        for line in map(Requirement, requires):
            if line.marker is None or any(line.marker.evaluate({"extra": one}) for one in extras | {""}):
                waiting.append((line.name, frozenset(line.extras)))
    return set(found)


def licence(name: str) -> str:
    """What a distribution says of its licence."""
    told = distribution(name).metadata
    classifiers = [
        line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or () if line.startswith("License")
    ]
    first = (told.get("License") or "").strip().splitlines()
    return told.get("License-Expression") or "; ".join(classifiers) or (first[0] if first else "")


def refused() -> Iterator[str]:
    """A line for each distribution whose licence is not allowed."""
    for name in sorted(needed() - set(EXCEPTIONS)):
        told = licence(name)
        if not re.search(rf"\b({ALLOWED})\b", told) or ("GPL" in told and " OR " not in told):
            yield f"{name}: licence {told[:80] or 'unknown'!r} is not among those allowed in deploy/audit.py"


def advised(said: str) -> tuple[list[str], int]:
    """Of pip-audit's JSON: a line for each advisory, and how many distributions were looked up."""
    packages = json.loads(said)["dependencies"]
    asked = [one for one in packages if "skip_reason" not in one]
    return [
        f"{one['name']} {one['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for one in asked for found in one["vulns"]
    ], len(asked)  # fmt: skip


def advisories() -> int:
    """Ask, and print what was found."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--require-hashes", "--disable-pip", "-f", "json",
               "--progress-spinner", "off", "--timeout", "15"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    said = "the package index has no advisories"
    try:
        lines, asked = advised(done.stdout)
    except (ValueError, KeyError):
        lines, asked = [], 0
        said = (done.stderr.strip().splitlines() or ["pip-audit ended without a word"])[-1][:200]
    if not asked:
        print(f"advisories could not be asked for, nothing was audited: {said}", file=sys.stderr)
        return 2
    print("\n".join(lines) or f"{asked} packages, no known vulnerability")
    return 1 if lines else 0


def main() -> int:
    """Check what is asked for."""
    if sys.argv[1:] == ["advisories"]:
        return advisories()
    if sys.argv[1:] == ["licences"]:
        lines = list(refused())
        print("\n".join(lines) or f"{len(needed())} packages, every licence is allowed")
        return 1 if lines else 0
    print("usage: audit.py licences|advisories", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
