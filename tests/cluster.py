"""Servers in numbers, as real processes on loopback: a primary with replicas and Sentinels, and a cluster."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tests.valkey import ValkeyProcess, server_binary

NAME = "mymaster"
DOWN_AFTER_MS = 2500
"""How long a primary is silent before it counts as down, in these tests; the servers' own default is far longer. On a
busy machine one that lives may be silent, too."""
SLOTS = 16_384
SECONDS = 30.0


class Node:
    """One server. ``directory`` is its own."""

    def __init__(self, directory: Path, *options: str, binary: Path | None = None) -> None:
        directory.mkdir(parents=True)
        self.port = node_port()
        options = ("--repl-diskless-sync-delay", "0", *options)
        self.process = ValkeyProcess(directory, *options, durable=True, binary=binary, port=self.port)
        self.client: Any = Redis(port=self.port, socket_timeout=2, socket_connect_timeout=1, decode_responses=True)

    def start(self) -> None:
        """Start it, with its data of before."""
        self.process.start(ready=False)

    def kill(self) -> None:
        """End it at once, if it was started."""
        with suppress(OSError, AssertionError):
            self.process.thaw()
        self.process.kill()
        self.client.connection_pool.disconnect()

    def commands(self) -> int:
        """How many commands clients have had it process. What scripts call is not counted by a cluster's own figures,
        so this sums what came from outside: everything but the commands within scripts."""
        return int(self.client.info("stats")["total_commands_processed"])


class SentinelSet:
    """A primary, two replicas and three Sentinels."""

    def __init__(
        self, directory: Path, *options: str, kind: str = "valkey", replicas: int = 2, down_after: int = DOWN_AFTER_MS
    ) -> None:
        self._down_after = down_after
        self.binary = server_binary(kind)
        self.nodes = [Node(directory / str(n), *options, binary=self.binary) for n in range(1 + replicas)]
        self._directory = directory
        self._ports = [node_port() for _ in range(3)]
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The address as a user writes it."""
        return f"redis+sentinel://{self.hosts}/{NAME}"

    @property
    def hosts(self) -> str:
        """The Sentinels."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def start(self) -> None:
        """Start everything; returns when the replicas follow and the Sentinels know each other."""
        for node in self.nodes:
            node.start()
        for node in self.nodes[1:]:
            node.client.replicaof("127.0.0.1", self.nodes[0].port)
        wait_for(lambda: all(_in_step(node) for node in self.nodes))
        for port in self._ports:
            self._sentinels.append(self._start_sentinel(port))
        wait_for(self._complete)

    def primary(self) -> Node:
        """The node that the Sentinels name."""
        return next(node for node in self.nodes if node.port == self._named())

    def ask(self, *command: Any) -> Any:
        """The answer of the first Sentinel that answers."""
        for port in self._ports:
            with suppress(RedisError, OSError):
                sentinel: Any = Redis(port=port, socket_timeout=1, decode_responses=True)
                return sentinel.execute_command(*command)
        raise AssertionError("no Sentinel answers")

    def stop_sentinels(self, count: int) -> None:
        """End the last ``count`` Sentinels."""
        for process in self._sentinels[-count:]:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End everything."""
        self.stop_sentinels(len(self._sentinels))
        for node in self.nodes:
            node.kill()

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        config = self._directory / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.nodes[0].port} 2\n"
            f"sentinel down-after-milliseconds {NAME} {self._down_after}\n"
            f"sentinel failover-timeout {NAME} 10000\nsentinel parallel-syncs {NAME} 2\n"
        )
        return subprocess.Popen(
            [self.binary, config, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _complete(self) -> bool:
        state = self.ask("SENTINEL", "MASTER", NAME)
        fields = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
        return (
            int(fields["num-slaves"]) == len(self.nodes) - 1 and int(fields["num-other-sentinels"]) == 2
            and fields["flags"] in ("master", {"master"})
        )  # fmt: skip

    def _named(self) -> int:
        address = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return int(address[1])


class ClusterSet:
    """A cluster: ``primaries`` with one replica each, unless ``replicas`` is False."""

    def __init__(
        self, directory: Path, *options: str, kind: str = "valkey", primaries: int = 3, replicas: bool = True,
        down_after: int = DOWN_AFTER_MS,
    ) -> None:  # fmt: skip
        timeout = ("--cluster-node-timeout", str(down_after))
        own = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", *timeout, *options)
        count = primaries * (2 if replicas else 1)
        self.nodes = [Node(directory / str(n), *own, binary=server_binary(kind)) for n in range(count)]
        self._primaries = primaries

    @property
    def url(self) -> str:
        """The address as a user writes it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[: self._primaries])

    def start(self) -> None:
        """Start everything; returns when every slot is covered and every replica follows its primary."""
        for node in self.nodes:
            node.start()
        first, primaries = self.nodes[0], self.nodes[: self._primaries]
        for number, node in enumerate(self.nodes):
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port)
        for number, node in enumerate(primaries):
            start, end = number * SLOTS // self._primaries, (number + 1) * SLOTS // self._primaries - 1
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end)
        wait_for(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes))
        for number, node in enumerate(self.nodes[self._primaries :]):
            self._replicate(node, primaries[number])
        wait_for(self.healthy)

    def healthy(self) -> bool:
        """Whether all nodes agree that all slots are covered, and every replica follows."""
        return all(map(_is_well, self.nodes))

    def primaries(self) -> list[Node]:
        """The nodes that are primaries now, in their own opinion."""
        return [node for node in self.nodes if _role(node) == "master"]

    def migrate(self, slot: int, *, atomic: bool = False, keys_at_once: int = 100, pause: float = 0) -> None:
        """Move ``slot`` to another primary: key by key as redis-cli does, or atomically as Valkey 9 can."""
        ids = {node: node.client.execute_command("CLUSTER", "MYID") for node in self.primaries()}
        primaries = [node for node, identity in ids.items() if _slots_of(node, identity)]
        source = next(node for node in primaries if slot in _slots_of(node, ids[node]))
        target = next(node for node in primaries if node is not source)
        if atomic:
            source.client.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", ids[target])
            wait_for(lambda: slot in _slots_of(target, ids[target]))
            return
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        while names := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
            time.sleep(pause)
        for node in (target, source, *primaries):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])

    def hand_over(self, dice: random.Random) -> None:
        """Make a replica the primary in the place of its own."""
        replicas = [node for node in self.nodes if _role(node) == "slave" and _in_step(node)]
        dice.choice(replicas).client.execute_command("CLUSTER", "FAILOVER")

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.kill()

    def _replicate(self, node: Node, primary: Node) -> None:
        identity = primary.client.execute_command("CLUSTER", "MYID")

        def follows() -> bool:
            return bool(node.client.execute_command("CLUSTER", "REPLICATE", identity))

        wait_for(follows)

    def _known(self, node: Node) -> int:
        return len(str(node.client.execute_command("CLUSTER", "NODES")).splitlines())


def node_port() -> int:
    """A free port whose neighbour 10,000 above, which a cluster node needs as well, is free, too; both below those that
    the system gives to clients, one of which may have it by the time the server starts."""
    while True:
        port = random.randint(12_000, 22_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def freeze(node: Node) -> None:
    """Stop ``node`` where it stands."""
    assert node.process._process is not None
    node.process._process.send_signal(signal.SIGSTOP)


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> None:
    """Return once ``condition`` holds; servers that do not answer yet are asked again."""
    give_up = time.monotonic() + seconds
    while True:
        with suppress(RedisError, OSError, StopIteration):
            if condition():
                return
        assert time.monotonic() < give_up, "it did not become true in time"
        time.sleep(0.05)


def _in_step(node: Node) -> bool:
    """Whether it has all that its primary has, if it is a replica."""
    link = node.client.info("replication")
    return bool(link["role"] == "master" or link["master_link_status"] == "up")


def _is_well(node: Node) -> bool:
    try:
        return "cluster_state:ok" in str(node.client.execute_command("CLUSTER", "INFO")) and _in_step(node)
    except (RedisError, OSError):
        return False


def _role(node: Node) -> str:
    try:
        return str(node.client.info("replication")["role"])
    except (RedisError, OSError):
        return ""


def _slots_of(node: Node, identity: str) -> set[int]:
    found = set[int]()
    for first, last, (_, port, *_rest), *_others in _raw_slots(node):
        if port == node.port:
            found.update(range(first, last + 1))
    return found


def _raw_slots(node: Node) -> Sequence[Any]:
    client: Any = Redis(port=node.port, socket_timeout=2)
    client.response_callbacks.clear()
    return list(client.execute_command("CLUSTER SLOTS"))
