# SPDX-License-Identifier: Apache-2.0
"""Nodes in network namespaces on one bridge: a LAN that ends with its block, whatever happens in it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface
from typing import Any

from fairlead.dataplane.xdp.host import Routes

_numbers = itertools.count()


def ip(*arguments: str, check: bool = True) -> str:
    """Run the command ``ip``."""
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Node:
    """One namespace; ``eth0`` is its port to the bridge."""

    def __init__(self, lan: Lan, name: str, number: int) -> None:
        self.lan = lan
        self.name = name
        self.number = number
        self.namespace = f"{lan.name}-{name}"
        self.address = f"10.9.0.{number}"
        self.address6 = f"fd00:9::{number:x}"

    def command(self, *command: str) -> list[str]:
        """The command that runs ``command`` on this node."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(self.command(*command), check=False, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def ip(self, *arguments: str, check: bool = True) -> str:
        """Run the command ``ip`` on this node."""
        return ip("-n", self.namespace, *arguments, check=check)

    def addresses(self, interface: str = "eth0") -> set[str]:
        """What the interface carries, as ADDRESS/PREFIX."""
        (found,) = json.loads(self.ip("-j", "address", "show", "dev", interface))
        return {f"{info['local']}/{info['prefixlen']}" for info in found["addr_info"]}

    def holds(self, vip: str, interface: str = "eth0") -> bool:
        """Whether it carries ``vip`` (ADDRESS/PREFIX). Asked again and again, and so without a program."""
        wanted = ip_interface(vip)
        with self.inside(), Routes() as kernel:
            index = socket.if_nametoindex(interface)
            return (index, wanted.ip, wanted.network.prefixlen) in {
                (it.index, it.address, it.prefix) for it in kernel.addresses()
            }

    def mac(self, interface: str = "eth0") -> str:
        """Of the interface."""
        (found,) = json.loads(self.ip("-j", "link", "show", "dev", interface))
        return str(found["address"])

    def neighbour(self, address: str, interface: str = "eth0") -> str | None:
        """The MAC that this node believes ``address`` to have."""
        found = json.loads(self.ip("-j", "neighbour", "show", "to", address, "dev", interface) or "[]")
        return str(found[0]["lladdr"]) if found and "lladdr" in found[0] else None

    def speak_to(self, address: str) -> None:
        """Send it a datagram, so that this node must find out where it is."""
        with self.inside():
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(b"?", (address, 9))

    def plug(self, *, connected: bool) -> None:
        """Pull the cable, or put it back."""
        ip("-n", self.lan.name, "link", "set", f"p-{self.name}", "up" if connected else "down")

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """The block runs in this namespace: sockets that it makes belong to it. For the main thread alone."""
        return inside(self.namespace)


class Lan:
    """A bridge in a namespace of its own, and nodes on it. Use ``lan()``."""

    def __init__(self) -> None:
        self.name = f"fl{os.getpid():x}x{next(_numbers)}"
        self.nodes: dict[str, Node] = {}

    def add(self, name: str, addresses: Sequence[str] | None = None) -> Node:
        """A node; by default with one address of each family."""
        node = Node(self, name, len(self.nodes) + 1)
        self.nodes[name] = node
        ip("netns", "add", node.namespace)
        node.ip("link", "set", "lo", "up")
        self.connect(node, "eth0", f"p-{name}")
        for address in (f"{node.address}/24", f"{node.address6}/64") if addresses is None else addresses:
            node.ip("address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        return node

    def connect(self, node: Node, interface: str, port: str, bridge: str = "br0") -> None:
        """One more cable from ``node`` to a bridge."""
        peer = ["peer", "name", port, "netns", self.name]
        ip("-n", node.namespace, "link", "add", interface, "type", "veth", *peer)
        ip("-n", self.name, "link", "set", port, "master", bridge, "up")
        ip("netns", "exec", node.namespace, "sysctl", "-q", f"net.ipv6.conf.{interface}.accept_dad=0")
        node.ip("link", "set", interface, "up")

    def add_bridge(self, bridge: str) -> None:
        """A switch of its own."""
        ip("-n", self.name, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.name, "link", "set", bridge, "up")

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """The block runs in the namespace of the switches."""
        return inside(self.name)

    def cut(self, port: str) -> None:
        """Pull the cable of one port of a switch."""
        ip("-n", self.name, "link", "set", port, "down")

    def mend(self, port: str) -> None:
        """Put it back."""
        ip("-n", self.name, "link", "set", port, "up")

    def owners(self, vip: str) -> list[str]:
        """Names of the nodes that carry ``vip``."""
        return [node.name for node in self.nodes.values() if node.holds(vip)]

    def nft(self, *rules: str) -> None:
        """Rules in the table ``bridge t`` of the switch."""
        script = "\n".join(rules)
        subprocess.run(
            ["ip", "netns", "exec", self.name, "nft", "-f", "-"], input=script, text=True, check=True, timeout=30
        )


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The block runs in a named network namespace. For the main thread alone."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _setns(there)
        try:
            yield
        finally:
            _setns(before)
    finally:
        os.close(before)
        os.close(there)


@contextlib.contextmanager
def lan() -> Iterator[Lan]:
    """A LAN for the block; its namespaces go with it."""
    made = Lan()
    ip("netns", "add", made.name)
    try:
        made.add_bridge("br0")
        yield made
    finally:
        for namespace in (*(node.namespace for node in made.nodes.values()), made.name):
            ip("netns", "del", namespace, check=False)


def _setns(fd: int) -> None:
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(fd, 0x40000000) == 0, os.strerror(ctypes.get_errno())
