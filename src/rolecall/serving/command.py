"""A program that serves a model by the OpenAI API, such as llama-server or vLLM, as config.py names it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from rolecall.errors import ConfigError
from rolecall.serving.server import Spec


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
            raise ConfigError(f"{where}: command: a program with its arguments is allowed")
        if self.slots < 1 or self.context < 1 or self.ram < 0:
            raise ConfigError(f"{where}: slots and context of 1 or more and ram of 0 or more are allowed")
        if not self.ram and not any(part.endswith(".gguf") for part in parts):
            raise ConfigError(f"{where}: ram=MB is needed, for the command names no .gguf file to reckon it from")
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
