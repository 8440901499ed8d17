"""All generated pages, by their path in the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reference import command_line, events, http_api, keys, metrics, python_api, settings

ROOT = Path(__file__).resolve().parents[1]


def pages() -> Mapping[str, str]:
    """Path below docs → Markdown."""
    return {
        "reference/command-line.md": command_line.page(),
        "reference/settings.md": settings.page(),
        "reference/python.md": python_api.page(),
        "reference/http.md": http_api.page(),
        "reference/events.md": events.page(),
        "reference/metrics.md": metrics.page(),
        "reference/keys.md": keys.page(),
        "changelog.md": changelog(),
    }


def changelog() -> str:
    """CHANGELOG.md with links that work from the documentation."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
