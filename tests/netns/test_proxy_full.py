# SPDX-License-Identifier: Apache-2.0
"""examples/proxy-full.yaml does what its comments say, with real servers behind it and its own ports in front."""

from __future__ import annotations

import collections
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fairlead.protocols.dns import encode_query
from support import talker
from support.netns import Lan, Node
from support.vipnode import VipNode
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.timeout(120)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "proxy-full.yaml"
DENIED = "203.0.113.5"


class Site:
    """A node with everything the example names."""

    def __init__(self, node: Node, runtime: Path, stack: ExitStack) -> None:
        self.node = node
        self.directory = runtime
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = stack
        node.ip("address", "add", f"{DENIED}/32", "dev", "lo")
        for port in ("9001", "9002", "9009"):
            self.start(port)
        for port in ("9053", "9054"):
            self.start(port)
        self.daemon = VipNode(node, runtime, EXAMPLE.read_text())

    def start(self, port: str) -> None:
        """Start the server of this port."""
        command: tuple[str, ...] = (sys.executable, talker.__file__, port)
        if port in ("9053", "9054"):
            command = (
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file",
                "--user=root", "--bind-interfaces", "--listen-address=127.0.0.1", "--interface=lo", f"--port={port}",
                f"--address=/example.org/192.0.2.{port[-2:]}",
            )  # fmt: skip
        process = subprocess.Popen(self.node.command(*command), stderr=subprocess.DEVNULL)
        self.processes[port] = process
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def kill(self, *ports: str) -> None:
        """End the servers of these ports."""
        for port in ports:
            self.processes[port].kill()
            self.processes[port].wait()

    def state(self, address: str) -> str:
        """Health of a server."""
        return next(str(it["health"]) for it in self.daemon.get("servers") if it["address"] == address)

    def ask(self, port: int, host: str = "127.0.0.1", source: str = "") -> tuple[str, str, str]:
        """Port of the server, the client that it sees, and how it knows; and the truth about the client."""
        with self.node.inside():
            s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        with s:
            s.settimeout(5)
            if source:
                s.bind((source, 0))
            s.connect((host, port))
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            data = b""
            while part := s.recv(65536):
                data += part
            name = s.getsockname()
        server, who, how = data.decode().partition("\r\n\r\n")[2].split(" ", 2)
        mine = f"[{name[0]}]:{name[1]}" if ":" in host else f"{name[0]}:{name[1]}"
        return server, "the client" if who == mine else who, how

    def resolve(self) -> int:
        """The last number of the address that a name server gives, asked on a new port."""
        query = encode_query(7, "example.org", "A")
        with self.node.inside():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with s:
            s.settimeout(5)
            s.connect(("127.0.0.1", 5353))
            s.send(query)
            return s.recv(512)[-1]


@pytest.fixture
def site(net: Lan, runtime: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(net.add("one"), runtime, stack)
        stack.enter_context(site.daemon)
        until(lambda: all(it["health"] == "up" for it in site.daemon.get("servers")), 20, "all servers are up")
        yield site


def test_web_tells_servers_the_client_and_refuses_the_denied(site: Site) -> None:
    answers = [site.ask(8080) for _ in range(8)] + [site.ask(8080, "::1")]
    assert {who for _, who, _ in answers} == {"the client"}
    assert {how for *_, how in answers} == {"by proxy"}
    assert {port for port, *_ in answers} <= {"9001", "9002"}
    with pytest.raises((ConnectionResetError, ValueError)):
        site.ask(8080, source=DENIED)
    web = next(it for it in site.daemon.get("services") if it["name"] == "web")
    assert web["rejected"] == {"denied": 1}


def test_dns_takes_turns_and_leaves_a_dead_server(site: Site) -> None:
    assert collections.Counter(site.resolve() for _ in range(8)) == {53: 4, 54: 4}
    site.kill("9053")
    until(lambda: site.state("127.0.0.1:9053") == "down", 20, "the verdict")
    assert [site.resolve() for _ in range(4)] == [54] * 4


def test_sticky_stays_and_the_backup_serves_when_the_others_are_gone(site: Site) -> None:
    answers = [site.ask(8081, source=f"127.0.9.{n}") for n in range(1, 9)]
    [home] = {port for port, *_ in answers}  # one /24
    assert home in ("9001", "9002")
    assert {how for *_, how in answers} == {"directly"}
    site.kill("9001", "9002")
    until(lambda: site.state("127.0.0.1:9001") == site.state("127.0.0.1:9002") == "down", 20, "the verdicts")
    assert site.ask(8081)[0] == site.ask(8080)[0] == "9009"
    site.kill("9009")
    until(lambda: site.state("127.0.0.1:9009") == "down", 20, "the verdict")
    with pytest.raises((ConnectionResetError, ValueError)):
        site.ask(8080)
    site.start("9001")  # sticky fails open: it serves before any verdict
    until(lambda: _serves(site), 10, "it serves")


def _serves(site: Site) -> bool:
    try:
        return site.ask(8081)[0] == "9001"
    except (ConnectionResetError, ValueError):
        return False
