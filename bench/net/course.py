# SPDX-License-Identifier: Apache-2.0
"""Clients and servers in two network namespaces, and between them one lane per contender with a balancer of its own.

Every lane N is two cables: clients ``cN`` - ``oN`` balancer ``iN`` - ``sN`` servers. Clients send from 10.N.1.1 and up
to the VIP 10.N.0.100; the servers are 10.N.2.10 and up, and what they send back goes by the balancer. Clients and
servers are the same for all; what stands between is only what the contender brings.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import Cpus, kernel_threads
from fairlead.dataplane.xdp.libbpf.hooks import XDP_NATIVE, Link
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from support.netns import inside, ip
from support.xdp import compiled

SOURCES = 16  # as in load/main.c
SERVERS = 3
PORT = 8080
DISCARD = 9  # as in machines.bpf.c
OFFLOADS = ("tx", "tso", "gso", "gro")  # off everywhere: what a frame carries is what the wire would
MACHINES = Path(__file__).with_name("machines.bpf.c")


def enter(namespace: str, *command: str) -> list[str]:
    """The command that runs ``command`` in a namespace, with our mounts: pins of BPF are to be found again."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


def run_in(namespace: str, *command: str, text: str = "") -> None:
    """Run a command to its end.

    Raises:
        SystemExit: It fails.
    """
    # Not nsenter: /sys must show the namespace's interfaces.
    full = ["ip", "netns", "exec", namespace, *command]
    done = subprocess.run(full, input=text, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)}: {done.stderr.strip()}")


@dataclass
class Lane:
    """The way of one contender; a lane without a balancer is one cable."""

    number: int
    clients: str  # namespaces
    servers: str
    balancer: str | None
    machines: LoadedObject | None = None
    index: dict[str, int] = field(default_factory=dict)
    threads: list[int] = field(default_factory=list)  # NAPI of the balancer's interfaces

    def net(self, rest: str) -> str:
        """An address of this lane."""
        return f"10.{self.number}.{rest}"

    @property
    def vip(self) -> str:
        """What clients connect to when there is a balancer."""
        return self.net("0.100")

    @property
    def server_addresses(self) -> list[str]:
        """Of the real servers."""
        return [self.net(f"2.{10 + number}") for number in range(SERVERS)]

    def mac(self, end: str) -> str:
        """Of the interface ``cN``, ``oN``, ``iN`` or ``sN``."""
        namespace = {"c": self.clients, "s": self.servers}.get(end, self.balancer)
        (found,) = json.loads(ip("-n", str(namespace), "-j", "link", "show", f"{end}{self.number}"))
        return str(found["address"])


class Course:
    """The clients' and the servers' namespaces, and lanes as they are asked for. Use ``course()``."""

    def __init__(self, name: str, cpus: Cpus, stack: ExitStack) -> None:
        self.name, self.cpus, self._stack = name, cpus, stack
        self._count = 0
        self.clients, self.servers = self._namespace("c"), self._namespace("s")

    def at_end(self, what: Callable[..., object], *arguments: object) -> None:
        """Have something done when the course ends, before its namespaces go."""
        self._stack.callback(what, *arguments)

    def _namespace(self, name: str) -> str:
        namespace = f"{self.name}{name}"
        ip("netns", "add", namespace)
        self._stack.callback(ip, "netns", "del", namespace, check=False)
        for setting in (
            "net.ipv6.conf.default.disable_ipv6=1",
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            # What waits in TIME_WAIT is found on the way of every later packet, of whomever; and once the limit is
            # reached, the contenders that came first have it and the others do not: a tenth between two equal ones.
            "net.ipv4.tcp_max_tw_buckets=0",
        ):
            run_in(namespace, "sysctl", "-q", "-w", setting)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _cable(self, one: tuple[str, str], other: tuple[str, str]) -> None:
        (here, name), (there, peer) = one, other
        ip("-n", here, "link", "add", name, "type", "veth", "peer", "name", peer, "netns", there)
        for namespace, interface in (one, other):
            words = [word for offload in OFFLOADS for word in (offload, "off")]
            run_in(namespace, "ethtool", "-K", interface, *words)
            ip("-n", namespace, "link", "set", interface, "up")

    def lane(self, *, balancer: bool = True) -> Lane:
        """One more lane, with addresses and routes, without any load balancer yet."""
        self._count += 1
        number = self._count
        lane = Lane(number, self.clients, self.servers, self._namespace(f"b{number}") if balancer else None)
        client, server = (self.clients, f"c{number}"), (self.servers, f"s{number}")
        if lane.balancer is None:
            self._cable(client, server)
            ip("-n", self.clients, "address", "add", lane.net("2.1/24"), "dev", client[1])
        else:
            self._cable(client, (lane.balancer, f"o{number}"))
            self._cable((lane.balancer, f"i{number}"), server)
            ip("-n", self.clients, "address", "add", lane.net("0.2/24"), "dev", client[1])
            ip("-n", lane.balancer, "address", "add", lane.net("0.1/24"), "dev", f"o{number}")
            ip("-n", lane.balancer, "address", "add", lane.net("2.1/24"), "dev", f"i{number}")
            ip("-n", lane.balancer, "route", "add", lane.net("1.0/24"), "via", lane.net("0.2"))
            ip("-n", self.clients, "route", "add", lane.net("2.0/24"), "via", lane.net("0.1"))
            self._introduce(lane)
        for host in range(1, SOURCES + 1):
            ip("-n", self.clients, "address", "add", lane.net(f"1.{host}/32"), "dev", client[1])
        for address in lane.server_addresses:
            ip("-n", self.servers, "address", "add", f"{address}/24", "dev", server[1])
        for route in ("0.0/24", "1.0/24"):
            ip("-n", self.servers, "route", "add", lane.net(route), "via", lane.net("2.1"))
        return lane

    def _introduce(self, lane: Lane) -> None:
        """Neighbours know each other for good: nobody asks in the middle of a measurement."""
        number, mac = lane.number, {end: lane.mac(end) for end in "cois"}
        for namespace, interface, addresses, end in (
            (lane.clients, f"c{number}", [lane.net("0.1"), lane.vip], "o"),
            (str(lane.balancer), f"o{number}", [lane.net("0.2")], "c"),
            (str(lane.balancer), f"i{number}", lane.server_addresses, "s"),
            (lane.servers, f"s{number}", [lane.net("2.1")], "i"),
        ):
            for address in addresses:
                ip("-n", namespace, "neighbour", "replace", address, "lladdr", mac[end], "dev", interface)

    def equip(self, lane: Lane) -> None:
        """Let the ends of the lane receive what XDP sends, and count frames (see ``machines.bpf.c``)."""
        lane.machines = LoadedObject(compiled(MACHINES))
        self._stack.callback(lane.machines.close)
        for namespace, end in ((lane.clients, "c"), (lane.servers, "s")):
            self.attach(lane, namespace, end, "count_frames")

    def attach(self, lane: Lane, namespace: str, end: str, program: str) -> None:
        """Attach one of the programs to an interface of the lane."""
        assert lane.machines is not None
        with inside(namespace):
            lane.index[end] = socket.if_nametoindex(f"{end}{lane.number}")
            link = Link.attach(lane.machines.programs[program], lane.index[end], XDP_NATIVE)
        self._stack.callback(link.close)

    def spread(self, lane: Lane, *, brings_xdp: bool) -> None:
        """Each machine does the work of its own interfaces: NAPI in threads on its CPUs, where it can be charged.

        A veth has NAPI with XDP or with GRO: the balancer gets the latter where it does not bring the former.
        """
        if lane.balancer is None:
            return
        load, own = self.cpus.load, self.cpus.balancer
        places = (
            (self.clients, "c", load),
            (self.servers, "s", load),
            (lane.balancer, "o", own),
            (lane.balancer, "i", own),
        )
        for namespace, end, cpus in places:
            if end in "oi" and not brings_xdp:
                run_in(namespace, "ethtool", "-K", f"{end}{lane.number}", "gro", "on")
            name = f"{end}{lane.number}"
            before = set(kernel_threads(f"napi/{name}-"))
            run_in(namespace, "sh", "-c", f"echo 1 >/sys/class/net/{name}/threaded")
            made = [pid for pid in kernel_threads(f"napi/{name}-") if pid not in before]
            for pid in made:
                os.sched_setaffinity(pid, cpus)
            if end in "oi":
                lane.threads += made


@contextmanager
def course(cpus: Cpus) -> Iterator[Course]:
    """A course for the block; its namespaces, programs and threads go with it."""
    with ExitStack() as stack:
        yield Course(f"flb{os.getpid():x}", cpus, stack)
