"""A model server as all processes see it, and the model it is to serve."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

WAYS_OUT = (
    "use another model: set OPENAI_API_KEY and name a model such as gpt-5-mini@openai in config.py, "
    "or set OPENAI_BASE_URL to a server of your own"
)
State = Literal["starting", "ready", "away", "stopping"]


class Spec(msgspec.Struct, frozen=True):
    """What is to be served and how: one engine per spec and machine, however many processes ask.

    ``weights`` is a .gguf file for the engine that comes with the extra ``local``, or ``command`` starts any other one
    that serves the OpenAI API. ``context`` is tokens per slot, ``ram`` the MB it is expected to take (0: estimated from
    the weights), ``idle`` the seconds without a call after which it leaves (0: never). ``alias`` is what its server
    calls the model.
    """

    model: str
    weights: str = ""
    command: tuple[str, ...] = ()
    slots: int = 4
    context: int = 2048
    threads: int = 0
    ram: int = 0
    idle: float = 0.0
    pinned: bool = False
    alias: str = ""

    @property
    def id(self) -> str:
        """The same for the same engine: slots and context are fixed when it starts."""
        parts = (self.model, self.weights, self.command, self.slots, self.context, self.threads)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class ModelServer(msgspec.Struct, frozen=True):
    """One server of a model, as its host process keeps it in Redis; MB, and ms of the Redis server's clock.

    ``id`` is the fence: new with every start, and nothing is written about a server but under its id. ``machine`` is
    where ``pid`` means something and a loopback ``url`` leads to it, empty for a server that others run. ``birth`` and
    ``host_birth`` tell a process from a later one of the same pid.
    """

    id: str
    model: str
    spec: str
    state: State = "starting"
    machine: str = ""
    host: str = ""
    url: str = ""
    key: str = ""
    alias: str = ""
    pid: int = 0
    birth: str = ""
    host_pid: int = 0
    host_birth: str = ""
    slots: int = 1
    weight: float = 1.0
    ram: int = 0
    measured: bool = False
    pinned: bool = False
    why: str = ""
    ready: int = 0
    since: int = 0
    used: int = 0
    lapses: int = 0
    in_flight: int = 0
    age: int = 0
    idle: int = 0

    def __repr__(self) -> str:
        """Without the key."""
        return f"ModelServer({self.id}, {self.model}, {self.state}, {self.url}, pid {self.pid})"

    @property
    def owned(self) -> bool:
        """Whether a host process of ours runs it."""
        return bool(self.machine)
