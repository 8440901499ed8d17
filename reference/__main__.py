"""``python -m reference [DIRECTORY]``: write every generated page; without a directory, list them."""

from __future__ import annotations

import sys
from pathlib import Path

from reference.pages import pages


def main() -> None:
    """Write the pages, or list them."""
    for name, text in pages().items():
        if len(sys.argv) > 1:
            path = Path(sys.argv[1]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{name}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
