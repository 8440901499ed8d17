"""Hosts as network namespaces of this machine, joined by a switch in this process that delays, loses and cuts off.

The kernel's ``netem`` is not needed: each host has a TUN device, whose packets the switch reads and passes on. Needs
root, ``ip`` and /dev/net/tun; addresses are of 10.77.0.0/24 and reach nothing outside the namespaces.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET = 65_536
PREFIX = "rc-host"


def missing() -> str:
    """Why there can be no hosts here, in a few words; empty if there can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        name = f"{PREFIX}-try"
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
        subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"/dev/net/tun cannot be used: {error.strerror}"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed: {error.stderr.strip()}"
    return ""


@dataclass
class Host:
    """A host. What it sends is late by ``delay`` seconds; of what it sends and gets, the share ``loss`` is lost, and
    everything while it is ``cut`` off."""

    number: int
    delay: float = 0.0
    loss: float = 0.0
    cut: bool = False
    device: int = -1

    @property
    def address(self) -> str:
        """Its address."""
        return f"10.77.0.{self.number}"

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return f"{PREFIX}{self.number}-{os.getpid()}"

    @property
    def inside(self) -> list[str]:
        """What is written before a command to run it on this host."""
        return ["ip", "netns", "exec", self.namespace]

    def start(self) -> None:
        """Make it."""
        self.device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        name = f"rc{self.number}-{os.getpid()}"
        fcntl.ioctl(self.device, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
        _ip("netns", "add", self.namespace)
        _ip("link", "set", name, "netns", self.namespace)
        for words in (("addr", "add", f"{self.address}/24", "dev", name), ("link", "set", name, "up"),
                      ("link", "set", "lo", "up")):  # fmt: skip
            _ip("-n", self.namespace, *words)

    def stop(self) -> None:
        """Remove it; its processes must have ended."""
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)
        if self.device >= 0:
            os.close(self.device)
            self.device = -1


@dataclass
class Network:
    """The switch between ``hosts``, in a thread of its own."""

    hosts: Sequence[Host]
    counts: Counter[str] = field(default_factory=Counter)
    """Packets: passed, lost, cut."""
    _stopped: threading.Event = field(default_factory=threading.Event)
    _late: list[tuple[float, int, Host, bytes]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def start(self) -> None:
        """Make the hosts and begin."""
        for host in self.hosts:
            host.start()
        self._by_address = {bytes(int(part) for part in host.address.split(".")): host for host in self.hosts}
        self._by_device = {host.device: host for host in self.hosts}
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and remove the hosts."""
        self._stopped.set()
        self._thread.join()
        for host in self.hosts:
            host.stop()

    def _run(self) -> None:
        dice = random.Random(1)
        while not self._stopped.is_set():
            due = self._late[0][0] - time.monotonic() if self._late else 0.1
            ready, _, _ = select.select(list(self._by_device), [], [], max(0.0, min(due, 0.1)))
            for device in ready:
                self._read(self._by_device[device], dice)
            while self._late and self._late[0][0] <= time.monotonic():
                self._write(*heapq.heappop(self._late)[2:])

    def _read(self, sender: Host, dice: random.Random) -> None:
        try:
            packet = os.read(sender.device, PACKET)
        except BlockingIOError:
            return
        receiver = self._by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
        if receiver is None:
            return
        if sender.cut or receiver.cut:
            self.counts["cut"] += 1
        elif dice.random() < max(sender.loss, receiver.loss):
            self.counts["lost"] += 1
        elif sender.delay:
            heapq.heappush(self._late, (time.monotonic() + sender.delay, next(self._numbers), receiver, packet))
        else:
            self._write(receiver, packet)

    def _write(self, receiver: Host, packet: bytes) -> None:
        try:
            os.write(receiver.device, packet)
            self.counts["passed"] += 1
        except (BlockingIOError, OSError):
            self.counts["lost"] += 1


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
