"""The command line: one file per verb group, imported when its verb is called."""

from __future__ import annotations

import sys

from rolecall.errors import ConfigError, RolecallError


def main() -> None:
    """Run the command line. Exit status 2 for a wrong call or configuration, 1 for any other failure."""
    from rolecall.cli.app import app

    try:
        app()
    except ConfigError as error:
        _end(str(error), 2)
    except RolecallError as error:
        _end(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


def _end(message: str, status: int) -> None:
    print(f"rolecall: {message}", file=sys.stderr)
    sys.exit(status)
