"""A worker of the chaos run: the command line's own, or one whose bus is broken on purpose, to see the checker see it.

``no-fence``: no script asks any more whether its caller still owns the entry.
``split-reply``: the answer is written in one script, and only later, in another one, the entry is dropped and the next
turn released.
``no-record``: finished steps are not written down, so that a handler that is run again does them again.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from rolecall.redis import scripts

CONTROLS = ("no-fence", "split-reply")
STEPS_CONTROLS = ("no-record",)
GAP_SECONDS = 0.3
RELEASE = """\
-- Release the next turn of a conversation, whatever became of this one.
-- include: clock state entry trace turn sleep finish
local verdict = guard()
if verdict ~= 'OK' then return verdict end
drop()
if ORDERED then release() end
return 'OK'
"""


def break_bus(how: str) -> None:
    """Break this process's scripts. Call it before the modules that load them are imported."""
    read = scripts._read

    def broken(package: str, path: str) -> str:
        if path == "scripts/turn/release.lua":
            return RELEASE
        text = read(package, path)
        if how == "no-fence" and path == "scripts/lib/turn.lua":
            return _replaced(
                text, "local function guard()\n", "local function guard()\n  if true then return 'OK' end\n"
            )
        if how == "split-reply" and path == "scripts/turn/complete.lua":
            return _replaced(_replaced(text, "drop()\n", ""), "if ORDERED then release() end\n", "")
        return text

    scripts._read = broken
    if how == "no-record":
        from rolecall.agent import recorder

        async def forgetful(*args: Any) -> str:
            return "OK"

        setattr(recorder, "record", forgetful)  # noqa: B010  # the checker of types would have a say
    if how == "split-reply":
        from rolecall.worker import handling

        handling.complete = _split(handling.complete)  # type: ignore[attr-defined]


def _split(complete: Any) -> Any:
    from rolecall.bus.leases import lease_block
    from rolecall.bus.turn import FinishBlock, TurnBlock, finish_block

    release = scripts.script("rolecall.bus", "scripts/turn/release", TurnBlock, FinishBlock)

    async def split(bus: Any, delivery: Any, *args: Any, **options: Any) -> Any:
        verdict = await complete(bus, delivery, *args, **options)
        await asyncio.sleep(GAP_SECONDS)
        shard = bus.shards[delivery.shard]
        ending = finish_block(bus, shard, delivery.conversation, delivery.turn, "")
        await bus.server.run(release, lease_block(bus, delivery), ending)
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
