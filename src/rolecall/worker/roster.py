"""The instances of this process: how many of each role, which are free, and what they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rolecall.agent.agent_services import AgentServices
from rolecall.agent.role import Role
from rolecall.bus.bus import short_process
from rolecall.bus.leases import Demand, Reads
from rolecall.bus.settle import Refill
from rolecall.errors import ConfigError
from rolecall.worker.instance import Instance

NOTHING_READ = Reads()


@dataclass
class Roster:
    """Creates and keeps the instances, which all share ``services``."""

    services: AgentServices
    roles: dict[str, Role] = field(default_factory=dict)
    instances: dict[str, list[Instance]] = field(default_factory=dict)
    supplier: Callable[[Instance, str], Refill | None] | None = None
    """Says what the instances take along when they settle; see Instance.supplier."""
    suspects: set[Instance] = field(default_factory=set)
    """The instances that handle an entry on its last delivery."""
    reads: dict[str, Reads] = field(default_factory=dict)
    """What the last handler of each role read."""

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
        group[:] = [i for n, i in enumerate(group) if n < count or i.delivery is not None or i.following is not None]
        for _ in range(len(group), count):
            group.append(self._made(role, group))

    def dismiss(self, instance: Instance) -> None:
        """Forget ``instance`` if it is a surplus one that has ended its last envelope."""
        group = self.instances[instance.role]
        if instance in group and instance.retiring and instance.delivery is None:
            group.remove(instance)

    def supplied_by(self, supplier: Callable[[Instance, str], Refill | None]) -> None:
        """Have all instances, now and later, ask ``supplier`` what to take along."""
        self.supplier = supplier
        for instance in self.everyone():
            instance.supplier = supplier

    def pick(self, role: str) -> Instance | None:
        """A free instance of ``role``; of several, the one that has handled least."""
        found: Instance | None = None
        if self.isolated():
            return None
        for instance in self.instances.get(role, ()):
            # Most of a busy role have a delivery, which is cheaper to tell than whether one is free.
            if instance.delivery is None and instance.free and (found is None or instance.handled < found.handled):
                found = instance
        return found

    def everyone(self) -> list[Instance]:
        """All instances."""
        return [instance for group in self.instances.values() for instance in group]

    def idle(self, role: str) -> list[Instance]:
        """The free instances of ``role``, the one that has handled least first."""
        if self.isolated():
            return []
        return sorted((i for i in self.instances.get(role, ()) if i.free), key=lambda instance: instance.handled)

    def last_ok(self) -> bool:
        """Whether this process may take an entry on its last delivery: one at a time, so that a poisonous envelope
        kills nothing else."""
        return not self.suspects

    def isolated(self) -> bool:
        """Whether to take nothing because an entry on its last delivery is being handled. For a lease at most: what
        kills or blocks a process does so early, and a turn that takes long must not hold up all others."""
        if not self.suspects:
            return False
        settings, now = self.services.bus.settings, time.monotonic()
        return settings.max_deliveries > 1 and any(now - one.since < settings.lease_seconds for one in self.suspects)

    def replace(self, instance: Instance) -> Instance:
        """A new instance in the place of one whose handler does not end."""
        group = self.instances[instance.role]
        new = self._made(instance.role, group)
        self.suspects.discard(instance)
        new.retiring, instance.retiring = instance.retiring, True
        group[group.index(instance)] = new
        return new

    def demands(self) -> list[Demand]:
        """What there is room for."""
        found = ((role, self.idle(role)) for role in self.instances)
        return [self.demand(role, idle) for role, idle in found if idle]

    def demand(self, role: str, idle: Sequence[Instance]) -> Demand:
        """What to take for the ``idle`` instances of ``role``."""
        reads, ids = self.reads.get(role, NOTHING_READ), tuple([instance.id for instance in idle])
        history = self.services.bus.settings.assistant_history_limit if reads.history else 0
        return Demand(role, len(idle), self.last_ok(), ids, history, reads.preferences)

    def _made(self, role: str, group: list[Instance]) -> Instance:
        name = self._id(role, group)
        try:
            agent = self.roles[role].agent()
        except Exception as error:  # the boundary: an agent is anybody's code
            raise ConfigError(f"role {role}: its agent cannot be made: {type(error).__name__}: {error}") from error
        return Instance(
            name, role, agent, self.services, supplier=self.supplier, suspects=self.suspects, reads=self.reads
        )

    def _id(self, role: str, group: list[Instance]) -> str:
        """The id with the lowest number that is not in use in ``group``."""
        process = short_process(self.services.bus.process)
        stem, used = f"{role}:{process}", {instance.id for instance in group}
        return next(name for number in range(len(group) + 1) if (name := f"{stem}:{number}") not in used)
