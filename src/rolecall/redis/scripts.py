"""The Lua scripts: one change of state each, loaded from the files beside this one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

PATHS = {
    "admit": "bus/scripts/turn/admit.lua",
    "interrupt": "bus/scripts/turn/interrupt.lua",
    "edit": "bus/scripts/turn/edit.lua",
    "take": "bus/scripts/turn/take.lua",
    "start": "bus/scripts/turn/start.lua",
    "emit": "bus/scripts/turn/emit.lua",
    "renew": "bus/scripts/turn/renew.lua",
    "handback": "bus/scripts/turn/handback.lua",
    "hop": "bus/scripts/turn/hop.lua",
    "complete": "bus/scripts/turn/complete.lua",
    "defer": "bus/scripts/turn/defer.lua",
    "bury": "bus/scripts/turn/bury.lua",
    "quarantine": "bus/scripts/turn/quarantine.lua",
    "cancel": "bus/scripts/turn/cancel.lua",
    "stop": "bus/scripts/turn/stop.lua",
    "promote": "bus/scripts/turn/promote.lua",
    "audit": "bus/scripts/turn/audit.lua",
    "snapshot": "bus/scripts/turn/snapshot.lua",
    "notify": "bus/scripts/conversation/notify.lua",
    "note": "bus/scripts/conversation/note.lua",
    "prefer": "bus/scripts/conversation/prefer.lua",
    "feedback": "bus/scripts/conversation/feedback.lua",
    "delivered": "bus/scripts/conversation/delivered.lua",
    "show": "bus/scripts/conversation/show.lua",
    "unshow": "bus/scripts/conversation/unshow.lua",
    "register": "bus/scripts/process/register.lua",
    "retire": "bus/scripts/process/retire.lua",
    "fallback": "bus/scripts/process/fallback.lua",
    "redeem": "bus/scripts/process/redeem.lua",
    "tally": "bus/scripts/process/tally.lua",
    "lib/admit": "bus/scripts/lib/admit.lua",
    "lib/finish": "bus/scripts/lib/finish.lua",
    "lib/guard": "bus/scripts/lib/guard.lua",
    "lease": "redis/lease.lua",
    "lib/model": "models/scripts/lib/model.lua",
    "model_enter": "models/scripts/enter.lua",
    "model_hold": "models/scripts/hold.lua",
    "model_leave": "models/scripts/leave.lua",
    "model_wait": "models/scripts/wait.lua",
    "lib/served": "serving/scripts/lib/directory.lua",
    "served_beat": "serving/scripts/directory/beat.lua",
    "served_call": "serving/scripts/directory/call.lua",
    "served_claim": "serving/scripts/directory/claim.lua",
    "served_end": "serving/scripts/directory/end.lua",
    "served_enter": "serving/scripts/directory/enter.lua",
    "served_list": "serving/scripts/directory/list.lua",
    "served_stop": "serving/scripts/directory/stop.lua",
    "served_user": "serving/scripts/directory/user.lua",
    "serving_left": "serving/scripts/balance/left.lua",
    "serving_pick": "serving/scripts/balance/pick.lua",
}
_INCLUDE = re.compile(r"^-- include: (.+)$", re.MULTILINE)
_CHANGES_NOTHING = re.compile(r"^-- Changes nothing\b", re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """A script's whole text, with what it includes in front, and the SHA-1 the server knows it by. One that ``reads``
    and changes nothing may be run by users who may only read its keys."""

    name: str
    body: bytes
    sha: str
    reads: bool = False


@cache
def script(name: str) -> Script:
    """The script ``scripts/<name>.lua``."""
    text = _read(_path(name))
    included = _INCLUDE.search(text)
    for part in reversed(included.group(1).split() if included else []):
        text = _read(f"{_lib(name)}/{part}.lua") + text
    body = text.encode()
    reads = bool(_CHANGES_NOTHING.search(text))
    return Script(name, body, sha1(body, usedforsecurity=False).hexdigest(), reads)


@cache
def all_scripts() -> tuple[Script, ...]:
    """Every script there is."""
    return tuple(script(name) for name in PATHS if not name.startswith("lib/"))


def _path(name: str) -> str:
    return PATHS[name]


def _lib(name: str) -> str:
    return f"{PATHS[name].partition('/scripts/')[0]}/scripts/lib"


def _read(path: str) -> str:
    return (Path(__file__).parents[1] / path).read_text(encoding="utf-8")


def milliseconds(seconds: float) -> int:
    """``seconds`` as whole milliseconds."""
    return round(seconds * 1000)
