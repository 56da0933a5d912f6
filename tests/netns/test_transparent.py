# SPDX-License-Identifier: Apache-2.0
"""Servers see the client's own address: clients and servers in networks of their own, fairlead between them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.netns import Lan, Node
from support.vipnode import VipNode
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

# Says to every client, by TCP and UDP, who it is and which server this is.
SAYS = """
import contextlib, socket, sys, threading
name, family = sys.argv[1], socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
def tcp():
    with socket.create_server((sys.argv[2], 8080), family=family) as listening:
        while True:
            with contextlib.suppress(OSError), listening.accept()[0] as s:  # probes reset
                s.recv(100)
                s.sendall(f"{s.getpeername()[0]} {name}".encode())
threading.Thread(target=tcp, daemon=True).start()
with socket.socket(family, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[2], 8080))
    while True:
        _, peer = s.recvfrom(100)
        s.sendto(f"{peer[0]} {name}".encode(), peer)
"""
NETS = {4: ("10.9.1.{}", 24), 6: ("fd00:91::{}", 64)}


class Bed:
    """Client - fairlead - two servers whose default gateway is fairlead's node."""

    def __init__(self, net: Lan, runtime: Path, stack: ExitStack) -> None:
        net.add_bridge("br1")
        self.balancer, self.client = net.add("lb"), net.add("client")
        net.connect(self.balancer, "eth1", "p-lb1", "br1")
        self.servers: list[Node] = []
        for version, (pattern, length) in NETS.items():
            self.balancer.ip("address", "add", f"{pattern.format(1)}/{length}", "dev", "eth1", *_nodad(version))
        for name in ("one", "two"):
            node = net.add(name, ())
            net.connect(node, "eth1", f"q-{name}", "br1")
            for version, (pattern, length) in NETS.items():
                address = pattern.format(node.number)
                node.ip("address", "add", f"{address}/{length}", "dev", "eth1", *_nodad(version))
                node.ip(f"-{version}", "route", "add", "default", "via", pattern.format(1))
                command = node.command(sys.executable, "-c", SAYS, name, address)
                process = subprocess.Popen(command)
                stack.callback(process.wait)
                stack.callback(process.kill)
            self.servers.append(node)
        self.daemon = VipNode(self.balancer, runtime, self.configuration())

    def configuration(self, *, transparent: bool = True) -> str:
        text = ""
        for version in (4, 6):
            at = self.balancer.address if version == 4 else f"[{self.balancer.address6}]"
            for protocol in ("tcp", "udp"):
                text += (
                    f"  {protocol}{version}: {{listen: '{at}:80', protocol: {protocol}, pool: p{version}, "
                    f"scheduler: rr, transparent: {str(transparent).lower()}}}\n"
                )
        pools = ""
        for version, (pattern, _) in NETS.items():
            hosts = [pattern.format(it.number) for it in self.servers]
            names = ", ".join(f'"[{it}]:8080"' if version == 6 else f'"{it}:8080"' for it in hosts)
            monitor = "{type: tcp, interval: 200ms, timeout: 100ms, rise: 1, fall: 2}"
            pools += f"  p{version}: {{servers: [{names}], health: {monitor}}}\n"
        return f"services:\n{text}pools:\n{pools}"

    def ask(self, version: int, kind: socket.SocketKind) -> str:
        """What a server says: the client's address as it sees it, and its name."""
        where = self.balancer.address if version == 4 else self.balancer.address6
        with self.client.inside():
            s = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)
        with s:
            s.settimeout(5)
            s.connect((where, 80))
            s.send(b"who am I")
            return s.recv(100).decode()

    def rules(self) -> set[str]:
        """The host's routing rules and routes that are ours, one line each."""
        shown = [
            self.balancer.ip(f"-{version}", *what)
            for version in (4, 6)
            for what in (("rule", "show"), ("route", "show", "table", "all", "proto", "250"))
        ]
        return {line for text in shown for line in text.splitlines() if "sport" in line or line.startswith("local")}


def _nodad(version: int) -> list[str]:
    return ["nodad"] if version == 6 else []


@pytest.fixture
def bed(net: Lan, runtime: Path) -> Iterator[Bed]:
    with ExitStack() as stack:
        bed = Bed(net, runtime, stack)
        stack.enter_context(bed.daemon)
        until(lambda: all(it["state"] == "up" for it in bed.daemon.get("services")), 20, "all servers are up")
        yield bed


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_servers_see_the_client(bed: Bed, version: int, kind: socket.SocketKind) -> None:
    client = bed.client.address if version == 4 else bed.client.address6
    assert sorted(bed.ask(version, kind) for _ in range(4)) == [f"{client} {it}" for it in ("one", "one", "two", "two")]


def test_the_rules_come_and_go_with_the_services(bed: Bed) -> None:
    kept = bed.rules()
    assert len([it for it in kept if "ipproto tcp sport 8080" in it]) == 4
    assert len([it for it in kept if "ipproto udp sport 8080" in it]) == 4
    assert len(kept) == 10
    bed.balancer.ip("rule", "del", "from", "10.9.1.3", "ipproto", "tcp", "sport", "8080")
    assert len(bed.rules()) == 9
    until(lambda: bed.rules() == kept, 30, "what somebody removed is back")
    bed.daemon.kill_agent()
    assert bed.ask(4, socket.SOCK_STREAM).startswith(bed.client.address)
    bed.daemon.start()
    assert bed.ask(4, socket.SOCK_STREAM).startswith(bed.client.address)
    assert bed.rules() == kept
    bed.daemon.file.write_text(bed.configuration(transparent=False))
    assert bed.daemon.ask("/v1/reload", "POST")[0] == 200
    assert bed.ask(4, socket.SOCK_STREAM).startswith("10.9.1.1 ")
    until(lambda: bed.rules() == set(), 10, "the rules are gone")
    bed.daemon.file.write_text(bed.configuration())
    assert bed.daemon.ask("/v1/reload", "POST")[0] == 200
    until(lambda: bed.rules() == kept, 10, "they are back")
    bed.daemon.stop()
    assert bed.rules() == set()
