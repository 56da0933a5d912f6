# SPDX-License-Identifier: Apache-2.0
"""A load balancer between clients and servers, in network namespaces, with real traffic through the XDP program.

``outside`` is the switch of the clients (10.9.0.0/24, fd00:9::/64), ``inside`` that of the servers (10.0.1.0/24,
fd00:1::/64), whose gateway the balancer is. What keeps packets from getting lost on veth is done here: checksum and
segmentation offloads are off in clients and servers, and every switch port carries an XDP_PASS stub, without which
frames that the program sends would not be received.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from fairlead.dataplane.xdp import abi, filters, kernel
from fairlead.dataplane.xdp.libbpf import XDP_NATIVE, BpfMap, Link, LoadedObject
from support.netns import Lan, Node, ip, lan
from support.processes import UnixConnection
from support.wait import until
from support.xdp import bed_object

PROGRAM = (sys.executable, "-m", "fairlead")
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


def inside_of(node: Node, *command: str) -> list[str]:
    """The command that runs ``command`` in the node's network, with our mounts: pins are to outlive it."""
    return ["nsenter", f"--net=/run/netns/{node.namespace}", *command]


@dataclass
class Server:
    """A node with nginx and a UDP echo."""

    node: Node
    name: str
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    decapsulation: Link | None = None

    def start(self, directory: Path, port: int = 8080, listens: tuple[str, ...] = ("0.0.0.0", "::")) -> None:
        """Nginx at ``port`` of these addresses: ``/`` tells the name, ``/data/`` is a directory."""
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
                location /data/ {{ root {home}; }}
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


class Daemon:
    """``fairlead run`` on the balancer."""

    def __init__(self, node: Node, directory: Path, text: str) -> None:
        self.node = node
        self.file = directory / "fairlead.yaml"
        self.file.write_text(text)
        self.socket = directory / "api.sock"
        self.log = directory / "daemon.log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.with_rights: tuple[str, ...] = ()  # a command that runs the agent with others than ours

    def start(self) -> None:
        """Start, and wait until it serves."""
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                inside_of(self.node, *self.with_rights, *PROGRAM, "run", str(self.file), "--socket", str(self.socket)),
                stdout=log,
                stderr=log,
            )
        until(self._ready, 30, f"ready: {self.log}")

    def _ready(self) -> bool:
        assert self.agent is not None
        assert self.agent.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self._ask("/readyz")[0] == 200
        return False

    def _ask(self, path: str, method: str = "GET", body: str | None = None) -> tuple[int, str]:
        connection = UnixConnection(str(self.socket))
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, what: str) -> Any:
        """``/v1/WHAT``, decoded."""
        status, body = self._ask(f"/v1/{what}")
        assert status == 200, body
        return json.loads(body)

    def change(self, server: str, **values: object) -> None:
        """Change a server at run time."""
        status, body = self._ask(f"/v1/servers/{server}", "PATCH", json.dumps(values))
        assert status == 200, body

    def reload(self, text: str | None = None) -> None:
        """Read the file again, which says this now."""
        if text is not None:
            self.file.write_text(text)
        status, body = self._ask("/v1/reload", "POST")
        assert status == 200, body

    def server(self, key: str) -> dict[str, Any]:
        """What it says about one server."""
        return next(it for it in self.get("servers") if it["key"] == key)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.get("events?limit=1000") if event["kind"] == kind]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric with these labels."""
        families = text_string_to_metric_families(self._ask("/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"fairlead_{name}" and labels.items() <= sample.labels.items()
        )

    def command(self, *arguments: str, check: bool = True, both: bool = False) -> str:
        """What a verb of the command line prints; ``both``: on standard error, too."""
        full = inside_of(self.node, *PROGRAM, *arguments, "--socket", str(self.socket))
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + (done.stderr if both else "")

    def kill(self) -> None:
        """The agent dies at once; its workers and the kernel go on."""
        assert self.agent is not None
        os.kill(self.agent.pid, signal.SIGKILL)
        self.agent.wait()

    def leave(self) -> None:
        """The agent ends and leaves everything forwarding."""
        assert self.agent is not None
        self.agent.send_signal(signal.SIGUSR2)
        self.agent.wait(20)

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


class Crossing:
    """The bed; use ``crossing()``."""

    def __init__(self, net: Lan, directory: Path) -> None:
        self.net = net
        self.directory = directory
        self.servers: dict[str, Server] = {}
        self._stubs: list[Link] = []
        self._programs: list[LoadedObject] = []
        net.add_bridge("br1")
        self.balancer = net.add("lb")
        net.connect(self.balancer, "eth1", "q-lb", "br1")
        for address in ("10.0.1.1/24", "fd00:1::1/64"):
            self._address(self.balancer, "eth1", address)
        self._sysctl(
            self.balancer,
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv6.conf.default.accept_ra=0",
        )
        self.client = self.add_client("c1")

    def add_client(self, name: str) -> Node:
        """A client on the outside."""
        node = self.net.add(name)
        self._quiet(node)
        return node

    def add_server(self, name: str, number: int) -> Server:
        """A server on the inside, whose gateway is the balancer: 10.0.1.NUMBER and fd00:1::NUMBER (in hex)."""
        node = self.net.add(name, ())
        node.ip("link", "del", "eth0")
        self.net.connect(node, "eth0", f"q-{name}", "br1")
        self._address(node, "eth0", f"10.0.1.{number}/24")
        self._address(node, "eth0", f"fd00:1::{number:x}/64")
        node.ip("route", "add", "default", "via", "10.0.1.1")
        node.ip("route", "add", "default", "via", "fd00:1::1")
        self._quiet(node)
        self.servers[name] = Server(node, name)
        return self.servers[name]

    def add_near(self, name: str, *vips: str) -> Server:
        """A server on the outside, beside the clients, that has the VIPs on lo and does not tell anybody."""
        node = self.net.add(name)
        self._hide(node, vips)
        self._quiet(node)
        self.servers[name] = Server(node, name)
        return self.servers[name]

    def add_beside(self, name: str, number: int, *vips: str) -> Server:
        """A server with the VIPs on lo, at 10.0.1.NUMBER of the inside; it answers clients on the outside itself."""
        server = self.add_near(name, *vips)
        node = server.node
        self.net.connect(node, "eth1", f"q-{name}", "br1")
        self._address(node, "eth1", f"10.0.1.{number}/24")
        self._quiet(node, "eth1")
        self._sysctl(node, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")
        return server

    def add_far(self, name: str, number: int, *vips: str) -> Server:
        """A server behind a router, in 10.0.NUMBER.0/24 and fd00:NUMBER::/64, that takes tunnelled packets out."""
        server = self.add_near(name, *vips)
        node = server.node
        self.net.connect(node, "eth1", f"q-{name}", "br1")
        self._address(node, "eth1", f"10.0.1.{200 + number}/24")
        self._address(node, "eth1", f"fd00:1::{200 + number:x}/64")
        self._quiet(node, "eth1")
        for address in (f"10.0.{number}.10/32", f"fd00:{number}::10/128"):
            self._address(node, "lo", address)
        self.balancer.ip("route", "add", f"10.0.{number}.0/24", "via", f"10.0.1.{200 + number}")
        self.balancer.ip("route", "add", f"fd00:{number}::/64", "via", f"fd00:1::{200 + number:x}")
        self._sysctl(node, "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth1.rp_filter=0")
        server.decapsulation = self._attach(node, "eth1", "decapsulate")
        return server

    def decapsulate(self, server: Server, *, on: bool) -> None:
        """Let a far server take packets out of tunnels, or not."""
        assert server.decapsulation is not None
        wanted, other = ("decapsulate", "pass_all") if on else ("pass_all", "decapsulate")
        with in_namespace(server.node.namespace):
            loaded = next(it for it in self._programs if it.programs[other].id == server.decapsulation.state()[0])
            server.decapsulation.replace(loaded.programs[wanted], loaded.programs[other])

    def ready(self, without: tuple[str, ...] = ()) -> None:
        """Everything is connected: let frames through that the program sends, but for some ports of the switches."""
        for name in self.net.nodes:
            for port in (f"p-{name}", f"q-{name}"):
                if port not in without:
                    self._attach_switch(port)

    def _hide(self, node: Node, vips: tuple[str, ...]) -> None:
        self._sysctl(node, "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
        for vip in vips:
            self._address(node, "lo", f"{vip}/{128 if ':' in vip else 32}")

    def _address(self, node: Node, interface: str, address: str) -> None:
        node.ip("address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))

    def _sysctl(self, node: Node, *settings: str) -> None:
        node.run("sysctl", "-q", "-w", *settings)

    def _quiet(self, node: Node, interface: str = "eth0") -> None:
        node.run("ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off")

    def _attach_switch(self, port: str) -> None:
        names = ip("-n", self.net.name, "-o", "link", "show").split()
        if any(name.startswith(f"{port}@") for name in names):
            self._attach(self.net, port, "pass_all")

    def _attach(self, where: Node | Lan, interface: str, program: str) -> Link:
        namespace = where.namespace if isinstance(where, Node) else where.name
        with in_namespace(namespace):
            loaded = LoadedObject(bed_object())
            self._programs.append(loaded)
            index = kernel.interfaces()[interface]
            self._stubs.append(Link.attach(loaded.programs[program], index, XDP_NATIVE))
        return self._stubs[-1]

    def curl(self, url: str, *options: str, client: Node | None = None, check: bool = True) -> str:
        """What a client gets; an empty text when it gets nothing and nothing is checked."""
        node = client or self.client
        command = inside_of(node, "curl", "-s", "-S", "-m", "10", *options, url)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{url}: {done.stderr}\n{self.counters()}"
        return done.stdout

    def counters(self) -> dict[str, int]:
        """What the program counted, for messages of tests that fail."""
        with in_namespace(self.balancer.namespace):
            root = kernel.namespace_root()
        for place in root.glob("[0-9]*/cpus"):
            cpus = BpfMap.at(place)
            raw = cpus.get(bytes(4))
            cpus.close()
            return {c.name: n for c, n in abi.sum_counters(raw or b"").items() if n}
        return {}

    def close(self) -> None:
        """Everything ends."""
        for server in self.servers.values():
            server.kill()
        for link in self._stubs:
            link.close()
        for loaded in self._programs:
            loaded.close()
        with in_namespace(self.balancer.namespace):
            filters.cleanup()
            kernel.cleanup()


@contextlib.contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """This thread in a named network namespace."""
    node = Node.__new__(Node)
    node.namespace = name
    with node.inside():
        yield


@contextlib.contextmanager
def crossing(directory: Path) -> Iterator[Crossing]:
    """A bed for the block."""
    with lan() as net:
        made = Crossing(net, directory)
        try:
            yield made
        finally:
            made.close()


def http_from(client: Node, port: int, host: str, at: int) -> str:
    """What an HTTP server at ``host``:``at`` answers a client that connects from this port; then the client resets."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with client.inside(), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.settimeout(5)
        sock.bind(("", port))
        sock.connect((host, at))
        sock.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer.partition(b"\r\n\r\n")[2].decode()


def avoids(client: Node, ports: Iterable[int], vip: str, at: int, name: str) -> bool:
    """Whether no connection from these ports gets to the server of this name, or is refused."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        return all(http_from(client, port, vip, at).split()[0] != name for port in ports)
    return False


def echo_asked(client: Node, host: str) -> bool:
    """Whether ``host`` answers an ICMP echo request."""
    six = ":" in host
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    client.run("sysctl", "-q", "-w", "net.ipv4.ping_group_range=0 0")
    with client.inside(), socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(2)
        sock.connect((host, 0))
        sock.send(bytes((128 if six else 8, 0, 0, 0, 0, 0, 0, 7)) + b"payload")
        with contextlib.suppress(TimeoutError):
            return sock.recv(1500).endswith(b"payload")
    return False


def udp_ask(client: Node, host: str, port: int, data: bytes, timeout_s: float = 3.0) -> bytes:
    """What a datagram is answered with; empty when it is not."""
    with client.inside(), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((host, port))
        sock.send(data)
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535)
    return b""
