"""A worker of the chaos run: the command line's own, or one whose bus is broken on purpose, to see the checker see it.

``no-fence``: no script asks any more whether its caller still owns the entry.
``split-reply``: the answer is written in one script, and only later, in another one, the entry is dropped and the next
turn released.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from rolecall.bus.bus import Bus
from rolecall.bus.leases import Delivery
from rolecall.bus.settle import _finishing
from rolecall.redis import scripts
from rolecall.worker import instance

CONTROLS = ("no-fence", "split-reply")
GAP_SECONDS = 0.3
RELEASE = """\
-- include: guard finish
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
if not CONTROL then release() end
return 'OK'
"""


def break_bus(how: str) -> None:
    """Break this process's scripts before any is loaded."""
    read = scripts._read
    scripts.PATHS["release"] = "bus/scripts/turn/release.lua"

    def broken(path: str) -> str:
        if path == "bus/scripts/turn/release.lua":
            return RELEASE
        text = read(path)
        if how == "no-fence" and path == "bus/scripts/lib/guard.lua":
            return _replaced(
                text, "local function guard()\n", "local function guard()\n  if true then return 'OK' end\n"
            )
        if how == "split-reply" and path == "bus/scripts/turn/complete.lua":
            return _replaced(_replaced(text, "drop()\n", ""), "if not CONTROL then release() end\n", "")
        return text

    scripts._read = broken
    if how == "split-reply":
        instance.complete = _split(instance.complete)  # type: ignore[attr-defined]


def _split(complete: Any) -> Any:
    async def split(bus: Bus, delivery: Delivery, *args: Any, **options: Any) -> Any:
        verdict = await complete(bus, delivery, *args, **options)
        await asyncio.sleep(GAP_SECONDS)
        names, arguments = _finishing(bus, delivery, "", b"")
        await bus.server.run("release", names, arguments)
        return verdict

    return split


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"the script does not read as this control expects: {old!r}"
    return text.replace(old, new)


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if how != "none":
        break_bus(how)
    from rolecall.cli import main

    main()
