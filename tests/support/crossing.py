# SPDX-License-Identifier: Apache-2.0
"""A load balancer between clients and servers, in network namespaces, with real traffic through the XDP program.

``outside`` is the switch of the clients (10.9.0.0/24, fd00:9::/64), ``inside`` that of the servers (10.0.1.0/24,
fd00:1::/64), whose gateway the balancer is. What keeps packets from getting lost on veth is done here: checksum and
segmentation offloads are off in clients and servers, and every switch port carries an XDP_PASS stub, without which
frames that the program sends would not be received.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fairlead.dataplane.xdp import abi, filters, pins
from fairlead.dataplane.xdp.libbpf.hooks import XDP_NATIVE, Link
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from support.daemon import NodeDaemon, inside_of
from support.netns import Lan, Node, inside, ip, lan
from support.wait import until
from support.xdp import bed_object

UDP_ECHO = """
import socket, sys
name, at, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
sock = socket.socket(socket.AF_INET6 if ":" in at else socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind((at, port))
while True:
    data, peer = sock.recvfrom(65535)
    sock.sendto(b"pong" if data == b"ping" else name.encode() + b" " + data, peer)
"""


@dataclass
class Server:
    """A node with nginx and a UDP echo."""

    node: Node
    name: str
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    decapsulation: Link | None = None

    def start(self, directory: Path, port: int = 8080, listens: tuple[str, ...] = ("0.0.0.0", "::")) -> None:
        """Nginx at ``port`` of these addresses: ``/`` tells the name, ``/data/`` is a directory to read and write."""
        home = directory / self.name
        (home / "data").mkdir(parents=True, exist_ok=True)
        where = " ".join(
            f"listen {f'[{at}]' if ':' in at else at}:{port}{' ipv6only=on' if ':' in at else ''} backlog=4096;"
            for at in listens
        )
        places = "".join(
            f"{what}_temp_path {home}/{what}; " for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            textwrap.dedent(f"""\
            daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
            events {{ worker_connections 4096; }}
            http {{
              access_log off; {places}
              keepalive_requests 1000000; client_max_body_size 100m;
              server {{
                {where}
                location / {{ return 200 "{self.name} $remote_addr\\n"; }}
                location /data/ {{ root {home}; dav_methods PUT; }}
              }}
            }}
            """)
        )
        self.run(home, "nginx", "-c", str(home / "nginx.conf"), "-p", str(home))

    def echo(self, directory: Path, at: str, port: int) -> None:
        """A UDP echo that puts the name before what it got."""
        self.run(directory, sys.executable, "-c", UDP_ECHO, self.name, at, str(port))

    def run(self, home: Path, *command: str) -> None:
        """Run a program until the server is killed; what it says is in ``home``."""
        with (home / f"{self.name}.log").open("ab") as log:
            self.programs.append(subprocess.Popen(inside_of(self.node, *command), stdout=log, stderr=log))

    def kill(self) -> None:
        """All its programs die."""
        for program in self.programs:
            program.kill()
            program.wait()
        self.programs.clear()


class Daemon(NodeDaemon):
    """``fairlead run`` on the balancer."""

    def kill(self) -> None:
        """The agent dies at once; its workers and the kernel go on."""
        self.kill_agent()

    def leave(self) -> None:
        """The agent ends and leaves everything forwarding."""
        assert self.agent is not None
        self.agent.send_signal(signal.SIGUSR2)
        self.agent.wait(20)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait_until_up(self) -> None:
        """Wait until no server is down."""
        until(lambda: all(it["health"] != "down" for it in self.get("servers")), 10, f"all servers are up: {self.log}")

    def end(self) -> None:
        """The daemon ends, and everything of it."""
        if self.agent is None:
            return
        if self.agent.poll() is not None:
            self.start()  # its workers have no other master
        self.agent.send_signal(signal.SIGINT)
        try:
            self.agent.wait(20)
        except subprocess.TimeoutExpired:
            self.agent.kill()
            self.agent.wait()


class Bed:
    """Two switches and nodes between which frames of the program pass; ``balancers`` run it."""

    def __init__(self, net: Lan, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.balancers: list[Node] = []
        self._stubs: list[Link] = []
        self._programs: list[LoadedObject] = []
        net.add_bridge("br1")

    def add_balancer(self, name: str, outside: tuple[str, ...] | None, inside: tuple[str, ...]) -> Node:
        """A node on both switches, with these addresses, that forwards."""
        node = self.net.add(name, outside)
        self.net.connect(node, "eth1", f"q-{name}", "br1")
        for address in inside:
            self.address(node, "eth1", address)
        forwarding = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_ra=0")
        self.sysctl(node, *forwarding)
        self.balancers.append(node)
        return node

    def add_client(self, name: str, addresses: tuple[str, ...] | None = None) -> Node:
        """A client on the outside."""
        node = self.net.add(name, addresses)
        self.quiet(node)
        return node

    def add_inner(self, name: str, addresses: tuple[str, ...], gateways: tuple[str, ...]) -> Node:
        """A node on the inside alone."""
        node = self.net.add(name, ())
        node.ip("link", "del", "eth0")
        self.net.connect(node, "eth0", f"q-{name}", "br1")
        for address in addresses:
            self.address(node, "eth0", address)
        for gateway in gateways:
            node.ip("route", "add", "default", "via", gateway)
        self.quiet(node)
        return node

    def connect_inside(self, node: Node, *addresses: str) -> None:
        """A cable from an outer node to the inner switch."""
        self.net.connect(node, "eth1", f"q-{node.name}", "br1")
        for address in addresses:
            self.address(node, "eth1", address)
        self.quiet(node, "eth1")
        self.sysctl(node, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")

    def ready(self, without: tuple[str, ...] = ()) -> None:
        """Everything is connected: let frames through that the program sends, but for some ports of the switches."""
        for name in self.net.nodes:
            for port in (f"p-{name}", f"q-{name}"):
                if port not in without:
                    self._attach_switch(port)

    def hide(self, node: Node, *vips: str) -> None:
        """The VIPs are on lo, and the node does not tell anybody."""
        self.sysctl(node, "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
        for vip in vips:
            self.address(node, "lo", f"{vip}/{128 if ':' in vip else 32}")

    def address(self, node: Node, interface: str, address: str) -> None:
        """One more."""
        node.ip("address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))

    def sysctl(self, node: Node, *settings: str) -> None:
        """Switches of the node's kernel."""
        node.run("sysctl", "-q", "-w", *settings)

    def quiet(self, node: Node, interface: str = "eth0") -> None:
        """No offloads, which would leave checksums to a device that is none."""
        node.run("ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off")

    def _attach_switch(self, port: str) -> None:
        names = ip("-n", self.net.name, "-o", "link", "show").split()
        if any(name.startswith(f"{port}@") for name in names):
            self.attach(self.net, port, "pass_all")

    def attach(self, where: Node | Lan, interface: str, program: str) -> Link:
        """Let an interface carry a program of the bed."""
        namespace = where.namespace if isinstance(where, Node) else where.name
        with inside(namespace):
            loaded = LoadedObject(bed_object())
            self._programs.append(loaded)
            index = socket.if_nametoindex(interface)
            self._stubs.append(Link.attach(loaded.programs[program], index, XDP_NATIVE))
        return self._stubs[-1]

    def counters_of(self, node: Node) -> dict[str, int]:
        """What a balancer's program counted, for messages of tests that fail."""
        with inside(node.namespace):
            root = pins.namespace_root()
        for place in root.glob("[0-9]*/cpus"):
            cpus = BpfMap.at(place)
            raw = cpus.get(bytes(4))
            cpus.close()
            return {c.name: n for c, n in abi.sum_counters(raw or b"").items() if n}
        return {}

    def close(self) -> None:
        """Everything ends."""
        for link in self._stubs:
            link.close()
        for loaded in self._programs:
            loaded.close()
        for node in self.balancers:
            with inside(node.namespace):
                filters.cleanup()
                pins.cleanup()


class Crossing(Bed):
    """The bed of one balancer; use ``crossing()``."""

    def __init__(self, net: Lan, directory: Path) -> None:
        super().__init__(net, directory)
        self.servers: dict[str, Server] = {}
        self.balancer = self.add_balancer("lb", None, ("10.0.1.1/24", "fd00:1::1/64"))
        self.client = self.add_client("c1")

    def add_server(self, name: str, number: int) -> Server:
        """A server on the inside, whose gateway is the balancer: 10.0.1.NUMBER and fd00:1::NUMBER (in hex)."""
        addresses = (f"10.0.1.{number}/24", f"fd00:1::{number:x}/64")
        self.servers[name] = Server(self.add_inner(name, addresses, ("10.0.1.1", "fd00:1::1")), name)
        return self.servers[name]

    def add_servers(self, *numbers: int) -> None:
        """Servers s10, s11 ... on the inside, with nginx at port 8080 and a UDP echo at port 53, of both families."""
        for number in numbers:
            server = self.add_server(f"s{number}", number)
            server.start(self.directory)
            for at in ("0.0.0.0", "::"):
                server.echo(self.directory, at, 53)

    def add_near(self, name: str, *vips: str) -> Server:
        """A server on the outside, beside the clients, that has the VIPs on lo and does not tell anybody."""
        node = self.add_client(name)
        self.hide(node, *vips)
        self.servers[name] = Server(node, name)
        return self.servers[name]

    def add_beside(self, name: str, number: int, *vips: str) -> Server:
        """A server with the VIPs on lo, at 10.0.1.NUMBER of the inside; it answers clients on the outside itself."""
        server = self.add_near(name, *vips)
        self.connect_inside(server.node, f"10.0.1.{number}/24")
        return server

    def add_far(self, name: str, number: int, *vips: str) -> Server:
        """A server behind a router, in 10.0.NUMBER.0/24 and fd00:NUMBER::/64, that takes tunnelled packets out."""
        server = self.add_near(name, *vips)
        self.connect_inside(server.node, f"10.0.1.{200 + number}/24", f"fd00:1::{200 + number:x}/64")
        server.decapsulation = self.attach(server.node, "eth1", "decapsulate")
        for address in (f"10.0.{number}.10/32", f"fd00:{number}::10/128"):
            self.address(server.node, "lo", address)
        self.balancer.ip("route", "add", f"10.0.{number}.0/24", "via", f"10.0.1.{200 + number}")
        self.balancer.ip("route", "add", f"fd00:{number}::/64", "via", f"fd00:1::{200 + number:x}")
        return server

    def add_behind_router(self, name: str, number: int, mtu: int, *vips: str) -> Server:
        """A server like those of ``add_far``, but behind a router of its own, whose link to it has this MTU."""
        server = self.add_near(name, *vips)
        router = self.net.add(f"r{number}", ())
        router.ip("link", "del", "eth0")
        self.net.add_bridge("br2")
        self.net.connect(router, "eth1", f"q-{router.name}", "br1")
        self.net.connect(router, "eth2", "n-router", "br2")
        self.net.connect(server.node, "eth1", "n-server", "br2")
        for node, interface, place in (
            (router, "eth1", ("10.0.1.{}/24", "fd00:1::{}/64")),
            (router, "eth2", ("10.0.{}.1/24", "fd00:{}::1/64")),
            (server.node, "eth1", ("10.0.{}.10/24", "fd00:{}::10/64")),
        ):
            for address in place:
                self.address(
                    node, interface, address.format(number if interface == "eth2" or node is not router else 50)
                )
        for interface in ("eth1", "eth2"):
            self.quiet(router, interface)
        self.quiet(server.node, "eth1")
        router.ip("link", "set", "eth2", "mtu", str(mtu))
        self.sysctl(router, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.sysctl(server.node, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")
        self.attach(server.node, "eth1", "decapsulate")
        self.balancer.ip("route", "add", f"10.0.{number}.0/24", "via", "10.0.1.50")
        self.balancer.ip("route", "add", f"fd00:{number}::/64", "via", "fd00:1::50")
        return server

    def decapsulate(self, server: Server, *, on: bool) -> None:
        """Let a far server take packets out of tunnels, or not."""
        assert server.decapsulation is not None
        wanted, other = ("decapsulate", "pass_all") if on else ("pass_all", "decapsulate")
        with inside(server.node.namespace):
            loaded = next(it for it in self._programs if it.programs[other].id == server.decapsulation.state()[0])
            server.decapsulation.replace(loaded.programs[wanted], loaded.programs[other])

    def leave_checksums(self) -> None:
        """Clients and servers leave their checksums to hardware that there is not."""
        for name, node in self.net.nodes.items():
            for interface in ("eth0", "eth1") if name != "lb" else ():
                node.run("ethtool", "-K", interface, "tx", "on", "tso", "off", "gso", "off", check=interface == "eth0")

    def curl(self, url: str, *options: str, client: Node | None = None, check: bool = True) -> str:
        """What a client gets; an empty text when it gets nothing and nothing is checked."""
        node = client or self.client
        command = inside_of(node, "curl", "-s", "-S", "-m", "10", *options, url)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{url}: {done.stderr}\n{self.counters()}"
        return done.stdout

    def counters(self) -> dict[str, int]:
        """What the program counted, for messages of tests that fail."""
        return self.counters_of(self.balancer)

    def close(self) -> None:
        """Everything ends."""
        for server in self.servers.values():
            server.kill()
        super().close()


@contextlib.contextmanager
def crossing(directory: Path) -> Iterator[Crossing]:
    """A bed for the block."""
    with lan() as net:
        made = Crossing(net, directory)
        try:
            yield made
        finally:
            made.close()
