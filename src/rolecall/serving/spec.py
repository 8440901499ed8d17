"""A model server as all processes see it, and the model it is to serve."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from typing import Literal

import msgspec

from rolecall.errors import ConfigError

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
    embedding: Literal["", "own", "mean"] = ""
    """If set, the engine makes vectors rather than answers, pooled as its weights say or by their mean."""

    @property
    def id(self) -> str:
        """The same for the same engine: slots and context are fixed when it starts."""
        parts = (self.model, self.weights, self.command, self.slots, self.context, self.threads)
        if self.embedding:
            return hashlib.sha256(repr((*parts, self.embedding)).encode()).hexdigest()[:16]
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
        """Whether a host process of Rolecall runs it."""
        return bool(self.machine)


@dataclass(frozen=True)
class ModelCommand:
    """``command`` as one types it, without a shell: ``llama-server -m /models/qwen.gguf --port 0 -np {slots} -c
    {tokens}``. It is started when the model is first asked and ends with the last process that needs it.

    Where it listens is seen from outside, so port 0 is best; ``{port}`` is a free one for programs that cannot choose.
    ``{slots}``, ``{context}`` (tokens per slot) and ``{tokens}`` (of all slots) are the numbers here. It finds a key
    that it may ask for in LLAMA_API_KEY and VLLM_API_KEY. ``ram`` is the MB it takes, to be said where the command
    names no .gguf file; ``idle_seconds`` is LOCAL_IDLE_SECONDS if None; a ``pinned`` one never makes room for others.
    ``alias`` is its own name for the model.
    """

    command: str
    slots: int = 4
    context: int = 4096
    ram: int = 0
    idle_seconds: float | None = None
    pinned: bool = False
    alias: str = ""

    def checked(self, name: str) -> ModelCommand:
        """This one. Raises ConfigError, which names the model ``name``."""
        where = f"config.py, servers of {name}"
        try:
            parts = shlex.split(self.command)
        except ValueError as error:
            raise ConfigError(f"{where}: command: {error}") from None
        if not parts:
            raise ConfigError(f"{where}: command is invalid: expected a program with its arguments")
        if self.slots < 1 or self.context < 1 or self.ram < 0:
            raise ConfigError(f"{where}: expected slots and context of at least 1 and ram of at least 0")
        if not self.ram and not any(part.endswith(".gguf") for part in parts):
            raise ConfigError(f"{where}: ram=MB is required: the command names no .gguf file to estimate it from")
        return self

    def spec(self, name: str, idle_seconds: float) -> Spec:
        """What is to be served as ``name``."""
        return Spec(
            name,
            command=tuple(shlex.split(self.command)),
            slots=self.slots,
            context=self.context,
            ram=self.ram,
            idle=idle_seconds if self.idle_seconds is None else self.idle_seconds,
            pinned=self.pinned,
            alias=self.alias,
        )
