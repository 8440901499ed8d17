"""Roles: an agent class with the number of its instances, its models and its prefix, and what others know of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rolecall.agent.agent import Agent
from rolecall.agent.agent_services import RoleInfo
from rolecall.bus.commands import Language, find_command
from rolecall.errors import ConfigError, expect_call

Instances = int | Literal["auto"]
MAX_INSTANCES = 1024


@dataclass(frozen=True)
class Role:
    """One role of a deployment: its agent class, the number of instances per worker process, its models in fallback
    order, and the prefix of the messages that the manager sends it (``match="/weather"``). With ``instances="auto"``
    the number follows the slots of its model servers. The model ``"auto"`` stands for GEN_MODEL, else for the best
    model of each provider whose key is set and then the tiny local one."""

    agent: type[Agent]
    instances: Instances = 1
    models: tuple[str, ...] = ()
    match: str | None = None

    def __post_init__(self) -> None:
        own = (self.models,) if isinstance(self.models, str) else self.models
        if not isinstance(own, Iterable) or not all(isinstance(name, str) for name in own):
            raise ConfigError(f"Role(models={own!r}) is invalid: expected names such as ('smollm2@local',)")
        if not isinstance(self.match, str | None) or (self.match and self.match.strip() != self.match):
            raise ConfigError(f"Role(match={self.match!r}) is invalid: expected a text such as '/weather'")
        if self.match and (command := find_command(self.match)):
            raise ConfigError(
                f"Role(match={self.match!r}) is invalid: /{command.name} is a built-in command, so no message would "
                "reach the role; choose another prefix"
            )

    @property
    def name(self) -> str:
        """The role's name: the class attribute ``role``, else the class name without ``Agent``, in lower case."""
        return self.agent.role

    @property
    def description(self) -> str:
        """The first line of the agent's docstring; empty without one."""
        return (self.agent.__doc__ or "").strip().split("\n")[0]

    @property
    def variable(self) -> str:
        """The environment variable of its count, such as SAMPLELLM_INSTANCES."""
        return f"{self.name}_INSTANCES".upper().replace("-", "_")


def role_infos(roles: Iterable[Role]) -> dict[str, RoleInfo]:
    """What agents may know about ``roles``, by name."""
    return {role.name: RoleInfo(role.name, role.description, role.match, role.models) for role in roles}


def check_agent(agent: type[Agent]) -> None:
    """Raise ConfigError unless ``agent`` is a class that a role can run."""
    if not (isinstance(agent, type) and issubclass(agent, Agent)):
        raise ConfigError(f"config.py: Role({agent!r}) is invalid: expected a subclass of Agent")
    handle, where = inspect.unwrap(agent.handle), f"{agent.__module__}.{agent.__qualname__}"
    if handle is Agent.handle or (inspect.isfunction(handle) and not inspect.iscoroutinefunction(handle)):
        raise ConfigError(
            f"{where} is invalid: expected an async method handle(envelope, ctx) that returns an envelope"
        )
    bound = inspect.getattr_static(agent, "handle").__get__(agent, agent)  # as an instance calls it
    for call, takes, count in ((agent, "no arguments", 0), (bound, "handle(self, envelope, ctx)", 2)):
        try:
            expect_call(call, count)
        except TypeError as error:
            what = "is made with arguments" if count == 0 else "has a handler of other arguments"
            raise ConfigError(f"{where} {what}: expected {takes}: {error}") from None
    if not isinstance(agent.role, str):
        raise ConfigError(f"{where} is invalid: role = {agent.role!r}; expected a name such as 'samplellm'")
    offered = agent.languages.values() if isinstance(agent.languages, Mapping) else [None]
    if not all(isinstance(one, Language) for one in offered):
        expected = "expected languages = {'de': Language('Deutsch', 'Ich antworte auf Deutsch.')}"
        raise ConfigError(f"{where} is invalid: {expected}")
