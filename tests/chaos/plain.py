"""The command line of whatever version the path leads to."""

from __future__ import annotations

from rolecall.cli import main

if __name__ == "__main__":
    main()
