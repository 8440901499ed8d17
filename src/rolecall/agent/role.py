"""Roles: an agent class with the number of its instances, its models and its prefix, and what others know of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rolecall.agent.agent import Agent
from rolecall.agent.agent_services import RoleInfo
from rolecall.errors import ConfigError

Instances = int | Literal["auto"]
MAX_INSTANCES = 1024


@dataclass(frozen=True)
class Role:
    """One role of a deployment: its agent class, the number of instances per worker process, its models in fallback
    order, and the prefix of the messages that the manager sends it (``match="/weather"``). The model ``"auto"`` stands
    for GEN_MODEL, else for the best model of each provider whose key is set and then the tiny local one."""

    agent: type[Agent]
    instances: Instances = 1
    models: tuple[str, ...] = ()
    match: str | None = None

    def __post_init__(self) -> None:
        own = (self.models,) if isinstance(self.models, str) else self.models
        if not isinstance(own, Iterable) or not all(isinstance(name, str) for name in own):
            raise ConfigError(f"Role(models={own!r}) is invalid: expected names such as ('smollm2@local',)")
        if not isinstance(self.match, str | None):
            raise ConfigError(f"Role(match={self.match!r}) is invalid: expected a text such as '/weather'")

    @property
    def name(self) -> str:
        """The role's name: the class attribute ``role``, else the class name without ``Agent``, in lower case."""
        return self.agent.role

    @property
    def variable(self) -> str:
        """The environment variable of its count, such as SAMPLELLM_INSTANCES."""
        return f"{self.name}_INSTANCES".upper().replace("-", "_")


def role_infos(roles: Iterable[Role]) -> dict[str, RoleInfo]:
    """What agents may know about ``roles``, by name."""
    return {
        role.name: RoleInfo(role.name, (role.agent.__doc__ or "").strip().split("\n")[0], role.match, role.models)
        for role in roles
    }
