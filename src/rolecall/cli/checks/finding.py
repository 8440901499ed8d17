"""What a look at one thing found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["passed", "failed", "not set up"]


@dataclass(frozen=True)
class Finding:
    """One line of a checklist; ``remedy`` says what to do, for a problem always."""

    state: State
    name: str
    text: str
    remedy: str = ""


def judged(name: str, good: bool, text: str, remedy: str, otherwise: State = "failed") -> Finding:
    """Passed, without a remedy, when ``good``; else ``otherwise``."""
    return Finding("passed", name, text) if good else Finding(otherwise, name, text, remedy)
