"""docker-compose.yml for real: built, brought up, talked to over HTTP, scaled, killed, restarted, saved and restored.

    make test-compose                                    with Docker
    make test-compose COMPOSE=podman-compose ENGINE=podman

It uses the project name rolecall-proof and a directory of its own, touches nothing of yours, and takes a few minutes.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from tests.compose.lab import Failed, Lab
from tests.compose.parts import PARTS


def main() -> int:
    """Run all parts, or those named; the exit status."""
    wanted = sys.argv[1:] or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="rolecall-proof-") as directory:
        os.chmod(directory, 0o755)
        lab = Lab(Path(directory), free_port())
        lab.clear()
        try:
            for name in wanted:
                lab.say(f"── {name}: {(PARTS[name].__doc__ or '').strip()}")
                PARTS[name](lab)
        except Failed as failed:
            lab.say(f"FAILED: {failed}")
            for service in ("init", "valkey", "worker", "front", "telegram", "model"):
                lab.say(f"the last words of {service}:\n{lab.logs(service)[-1500:]}")
            return 1
        finally:
            lab.clear()
        lab.say("PASSED")
    return 0


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
