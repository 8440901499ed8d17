"""All model servers of the deployment, as Redis knows them: read, and changed one script at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import msgspec

from rolecall.redis import keys
from rolecall.redis.scripts import milliseconds, script
from rolecall.redis.server import Server
from rolecall.serving.footprint import Room
from rolecall.serving.spec import ModelServer, Spec, State

START_SECONDS = 10.0
"""How long a place is kept for a host process that is only being started."""
LAPSE_SECONDS = 5.0
"""A server counts as gone after its host has been silent for this long."""
USER_SECONDS = 6.0
"""A process that has been silent for this long needs no model any more."""
CALL_SECONDS = 15.0
"""A call is over after this long without a sign of life."""
RETRY_SECONDS = 3.0
"""How long a model that could not be started is not tried again."""
RESIDENT_SECONDS = 10.0
"""How long a loaded model stays at least before it makes room for another one."""


class DirectoryBlock(TypedDict):
    """What ``scripts/lib/directory.lua`` declares."""

    servers: str
    calls: str
    users: str
    failed: str


PACKAGE = "rolecall.serving"
LIST = script(PACKAGE, "scripts/directory/list", DirectoryBlock)
CLAIM = script(
    PACKAGE, "scripts/directory/claim", DirectoryBlock,
    names="server user user_lasts lasts most free resident hungry",
)  # fmt: skip
BEAT = script(PACKAGE, "scripts/directory/beat", DirectoryBlock, names="server lasts again")
END = script(PACKAGE, "scripts/directory/end", DirectoryBlock, names="server why retry_ms")
STOP = script(PACKAGE, "scripts/directory/stop", DirectoryBlock, names="server order busy")
ENTER = script(PACKAGE, "scripts/directory/enter", DirectoryBlock, names="spec machine call lasts queue")
CALL = script(PACKAGE, "scripts/directory/call", DirectoryBlock, names="server call lasts")
USER = script(PACKAGE, "scripts/directory/user", DirectoryBlock, names="user lasts")


@dataclass(frozen=True)
class Claim:
    """What asking for a server led to: a ``server`` that is READY or STARTING, leave to START one, FAILED because it
    could not be started just now, FULL while there is no memory for it, or NEVER: what may not leave takes too
    much. ``used`` and ``most`` are MB."""

    word: Literal["READY", "STARTING", "START", "FAILED", "FULL", "NEVER"]
    server: ModelServer | None = None
    why: str = ""
    used: int = 0
    most: int = 0
    after: float = 0.0


@dataclass(frozen=True)
class Pulse:
    """What a host hears in answer to a beat; ``idle`` seconds since the last call, ``users`` processes that need it.
    ``known`` is False once another has its place."""

    known: bool
    state: State = "stopping"
    in_flight: int = 0
    idle: float = 0.0
    users: int = 0
    pinned: bool = False


class Directory:
    """Reads and changes the model servers in ``server``. Every method is one round trip and atomic. ``resident``: see
    RESIDENT_SECONDS."""

    def __init__(self, server: Server, *, resident: float = RESIDENT_SECONDS) -> None:
        self._server = server
        self._resident = resident

    async def servers(self, spec: Spec | None = None, *, machine: str | None = None) -> list[ModelServer]:
        """The live servers with ``in_flight``, ``age`` and ``idle`` (ms) as of now; only those of ``spec``, and those
        that ``machine`` can use, if given. Oldest first."""
        found = [_server(raw) for raw in await self._server.run(LIST, _block())]
        chosen = [
            one
            for one in found
            if (spec is None or one.spec == spec.id) and (machine is None or one.machine in ("", machine))
        ]
        return sorted(chosen, key=lambda one: (one.since, one.id))

    async def claim(self, wanted: ModelServer, user: str, room: Room, *, hungry: bool = False) -> Claim:
        """Find the server of ``wanted.spec``, or claim its place: a caller that gets START has START_SECONDS to start a
        host under ``wanted.id``. ``room`` is that of ``wanted.machine``. Where it is too
        little, servers that nobody uses are asked to leave, the longest unused first, and only if that is enough; with
        ``hungry`` busy ones too, which answer first what they were asked. Those that load or are pinned stay."""
        word, *rest = await self._server.run(
            CLAIM, _block(), server=msgspec.json.encode(wanted), user=user, user_lasts=milliseconds(USER_SECONDS),
            lasts=milliseconds(START_SECONDS), most=room.most, free=room.free, resident=milliseconds(self._resident),
            hungry=int(hungry),
        )  # fmt: skip
        match word:
            case b"READY" | b"STARTING":
                return Claim("READY" if word == b"READY" else "STARTING", _server(rest[0]))
            case b"FAILED":
                return Claim("FAILED", why=rest[0].decode(), after=rest[1] / 1000)
            case b"FULL":
                return Claim("FULL", used=int(rest[0]), most=int(rest[1]))
            case b"NEVER":
                return Claim("NEVER", used=int(rest[0]), most=int(rest[1]))
        return Claim("START")

    async def beat(self, now: ModelServer, *, again: Literal["no", "alone", "always"] = "no") -> Pulse:
        """Say that ``now`` lives, for LAPSE_SECONDS. ``again`` is whether one that was forgotten is put back: not, if
        its model has no other server on its machine, or in any case."""
        back = {"no": 0, "alone": 1, "always": 2}[again]
        state, *rest = await self._server.run(
            BEAT, _block(), server=msgspec.json.encode(now), lasts=milliseconds(LAPSE_SECONDS), again=back
        )
        if state == b"GONE":
            return Pulse(False)
        return Pulse(True, state.decode(), int(rest[0]), rest[1] / 1000, int(rest[2]), bool(rest[3]))

    async def end(self, server: str, why: str = "") -> bool:
        """Forget the server of that id; with ``why``, its model is not started again for RETRY_SECONDS and whoever
        asks is told so. True if it was known."""
        return bool(await self._server.run(END, _block(), server=server, why=why, retry_ms=milliseconds(RETRY_SECONDS)))

    async def stop(self, server: str, *, busy: bool = False) -> Literal["stopping", "unknown", "busy"]:
        """Have the server of that id leave, with ``busy`` also while it answers. It does so within a second."""
        done = await self._server.run(STOP, _block(), server=server, order="stop", busy=int(busy))
        return "stopping" if done == 1 else "busy" if done == -1 else "unknown"

    async def pin(self, server: str, pinned: bool) -> bool:
        """Have a server stay, idle or not, until it is told to stop. False if there is none of that id."""
        order = "pin" if pinned else "unpin"
        return bool(await self._server.run(STOP, _block(), server=server, order=order, busy=0))

    async def enter(self, spec: Spec, machine: str, call: str, *, queue: bool = True) -> ModelServer | int | None:
        """Begin ``call`` at the ready server of ``spec`` with the fewest calls in flight by its weight, which lasts
        CALL_SECONDS without ``hold``. With ``queue`` False only where a slot is free: else the calls in flight are
        returned. None where no server is ready."""
        word, *rest = await self._server.run(
            ENTER, _block(), spec=spec.id, machine=machine, call=call, lasts=milliseconds(CALL_SECONDS),
            queue=int(queue),
        )  # fmt: skip
        if word == b"GO":
            return _server(rest[0])
        return int(rest[0]) if word == b"BUSY" else None

    async def hold(self, server: str, call: str) -> bool:
        """A sign of life of ``call``."""
        return bool(await self._server.run(CALL, _block(), server=server, call=call, lasts=milliseconds(CALL_SECONDS)))

    async def leave(self, server: str, call: str) -> None:
        """``call`` is over."""
        await self._server.run(CALL, _block(), server=server, call=call, lasts=0)

    async def needed_by(self, user: str, *, still: bool = True) -> int:
        """Say that ``user``, ``<machine>/<process>``, may need servers for USER_SECONDS more, or does not any longer;
        those of a machine leave when nobody does there. How many do there."""
        lasts = milliseconds(USER_SECONDS) if still else 0
        return int(await self._server.run(USER, _block(), user=user, lasts=lasts))


def _block() -> DirectoryBlock:
    return {
        "servers": keys.SERVED,
        "calls": keys.SERVED_CALLS,
        "users": keys.SERVED_USERS,
        "failed": keys.SERVED_FAILED,
    }


def _server(raw: bytes) -> ModelServer:
    return msgspec.json.decode(raw, type=ModelServer, strict=False)
