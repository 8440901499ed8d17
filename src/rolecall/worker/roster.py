"""The instances of this process: how many of each role, which are free, and what they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rolecall.agent.context import AgentServices, RoleInfo
from rolecall.bus.leases import Demand
from rolecall.config import Role
from rolecall.worker.instance import Instance


@dataclass
class Roster:
    """Creates and keeps the instances, which all share ``services``."""

    services: AgentServices
    roles: dict[str, Role] = field(default_factory=dict)
    instances: dict[str, list[Instance]] = field(default_factory=dict)

    def deploy(self, roles: Iterable[Role], services: AgentServices) -> None:
        """Run ``roles`` in this process, with ``services``. Existing instances use the new agent class and services
        from their next envelope on; ``set_count`` decides how many there are."""
        self.services = services
        self.roles = {role.name: role for role in roles}
        for name, role in self.roles.items():
            for instance in self.instances.setdefault(name, []):
                instance.deploy(role.agent(), services)

    def set_count(self, role: str, count: int) -> None:
        """Have ``count`` instances of ``role``; surplus ones end after their current envelope."""
        group = self.instances[role]
        for instance in group[count:]:
            instance.retiring = True
        for instance in group[:count]:
            instance.retiring = False
        group[:] = [i for n, i in enumerate(group) if n < count or i.delivery is not None]
        for _ in range(len(group), count):
            group.append(Instance(self._id(role, group), role, self.roles[role].agent(), self.services))

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
        """What there is room for. Of entries on their last delivery a role takes one at a time, so that a poisonous
        envelope kills nothing else."""
        last_delivery, wanted = self.services.bus.settings.max_deliveries, []
        for role, group in self.instances.items():
            free, last_ok = 0, True
            for instance in group:  # computed at every step of the reader, hence in one pass
                if instance.delivery is None:
                    free += not instance.retiring
                elif instance.delivery.count >= last_delivery:
                    last_ok = False
            if free:
                wanted.append(Demand(role, free, last_ok))
        return wanted

    def _id(self, role: str, group: list[Instance]) -> str:
        """The id with the lowest number that is not in use in ``group``."""
        process = self.services.bus.process.partition("~")[0]
        stem, used = f"{role}:{process}", {instance.id for instance in group}
        return next(name for number in range(len(group) + 1) if (name := f"{stem}:{number}") not in used)


def role_infos(roles: Iterable[Role]) -> dict[str, RoleInfo]:
    """What agents may know about ``roles``, by name."""
    return {
        role.name: RoleInfo(role.name, (role.agent.__doc__ or "").strip().split("\n")[0], role.match, role.models)
        for role in roles
    }
