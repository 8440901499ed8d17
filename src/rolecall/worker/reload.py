"""Development: reload the application's agents when their files change."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from rolecall.config import APP_MODULES, Application, load
from rolecall.errors import ConfigError
from rolecall.worker.runtime import Runtime

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.5


async def reload_on_change(runtime: Runtime) -> None:
    """Watch config.py, ``.env`` and agents/ of the runtime's application and deploy every change, until cancelled. A
    version that does not load is logged, and the running one stays."""
    directory = runtime.application.directory
    seen = _stamps(directory)  # at once, so that a change right after the start is one
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = await asyncio.to_thread(_stamps, directory)
        if now == seen:
            continue
        seen = now
        try:
            await runtime.redeploy(load_again(directory))
            logger.info("agents reloaded")
        except ConfigError as error:
            logger.error("not reloaded, the running agents stay: %s", error)


def load_again(directory: Path) -> Application:
    """Load the application from its files, ignoring modules imported earlier."""
    for name in [name for name in sys.modules if name.partition(".")[0] in APP_MODULES]:
        del sys.modules[name]
    return load(directory)


def _stamps(directory: Path) -> dict[Path, tuple[int, int]]:
    files = [directory / "config.py", directory / ".env", *(directory / "agents").rglob("*")]
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()}
