"""The instances of this process: how many of each role, which are free, on which agent class and model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rolecall.agent.context import RoleInfo
from rolecall.agent.policies import Rules
from rolecall.agent.prompts import Prompts
from rolecall.agent.tools import Tool
from rolecall.bus.bus import Bus
from rolecall.bus.leases import Demand
from rolecall.config import Role
from rolecall.models.gate import Gate
from rolecall.models.model import Model
from rolecall.stats import Measures
from rolecall.worker.instance import Instance, Surroundings

Statistics = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass
class Roster:
    """Makes and keeps the instances. ``model_of`` gives a role its model; ``models`` are all there are, by name."""

    bus: Bus
    model_of: Callable[[Role], Model | None] = lambda role: None
    models: Mapping[str, Model] = field(default_factory=dict)
    statistics: Statistics | None = None
    waits: Callable[[str, str], Awaitable[None]] | None = None
    prompts: Prompts = field(default_factory=Prompts)
    tool_source: Callable[[str], Awaitable[Sequence[Tool]]] | None = None
    measures: Measures = field(default_factory=Measures)
    hearing: Gate | None = None
    roles: dict[str, Role] = field(default_factory=dict)
    known: dict[str, RoleInfo] = field(default_factory=dict)
    instances: dict[str, list[Instance]] = field(default_factory=dict)

    def deploy(self, roles: Iterable[Role], known: Iterable[Role]) -> None:
        """Have ``roles`` here, among all the ``known`` ones of the deployment. Instances that exist get the new agent
        class for their next envelope; counts are ``set_count``'s."""
        self.roles = {role.name: role for role in roles}
        self.known = {role.name: _info(role) for role in known}
        for name, role in self.roles.items():
            around = self._surroundings(role)
            for instance in self.instances.setdefault(name, []):
                instance.assign(role.agent(), around)

    def set_count(self, role: str, count: int) -> None:
        """Have ``count`` instances of ``role``; those too many end after what they handle now."""
        group = self.instances[role]
        for instance in group[count:]:
            instance.retiring = True
        for instance in group[:count]:
            instance.retiring = False
        group[:] = [i for n, i in enumerate(group) if n < count or i.delivery is not None]
        around = self._surroundings(self.roles[role])
        for _ in range(len(group), count):
            group.append(Instance(self._id(role, group), role, self.roles[role].agent(), around))

    def free(self, role: str) -> int:
        """How many instances of ``role`` may take an envelope now."""
        return sum(instance.free for instance in self.instances.get(role, ()))

    def pick(self, role: str) -> Instance | None:
        """A free instance of ``role``; of several, the one that has handled least."""
        candidates = [i for i in self.instances.get(role, ()) if i.delivery is None and not i.retiring]
        return min(candidates, key=lambda instance: instance.handled, default=None)

    def everyone(self) -> list[Instance]:
        """All instances."""
        return [instance for group in self.instances.values() for instance in group]

    def demands(self) -> list[Demand]:
        """What there is room for; at most one entry on its last delivery per role at a time."""
        retries, wanted = self.bus.settings.retries, []
        for role, group in self.instances.items():
            free, last_ok = 0, True
            for instance in group:  # asked for at every step of the reader, hence in one pass
                if instance.delivery is None:
                    free += not instance.retiring
                elif instance.delivery.count >= retries:
                    last_ok = False
            if free:
                wanted.append(Demand(role, free, last_ok))
        return wanted

    def _surroundings(self, role: Role) -> Surroundings:
        settings = self.bus.settings
        rules = Rules(role.name, frozenset(self.known), settings.hop_limit, settings.assistant_timeout)
        return Surroundings(
            self.bus,
            rules,
            self.known,
            self.models,
            self.model_of(role),
            self.statistics,
            self.waits,
            prompts=self.prompts,
            tool_source=self.tool_source,
            measures=self.measures,
            hearing=self.hearing,
        )

    def _id(self, role: str, group: list[Instance]) -> str:
        """The id with the least number that none in ``group`` has."""
        stem, used = f"{role}:{self.bus.process.partition('~')[0]}", {instance.id for instance in group}
        return next(name for number in range(len(group) + 1) if (name := f"{stem}:{number}") not in used)


def _info(role: Role) -> RoleInfo:
    return RoleInfo(role.name, (role.agent.__doc__ or "").strip().split("\n")[0], role.match, role.models)
