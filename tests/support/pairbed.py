# SPDX-License-Identifier: Apache-2.0
"""examples/pair.yaml as it is, on two nodes in front of two servers; a crowd of clients talks to the VIP.

Outside is 198.51.100.0/24 with the VIP .10, inside 10.0.1.0/24 with the servers' gateway .1; both VIPs move together.
The clients are neighbours of the nodes, or in 203.0.113.0/24 behind a router. With ``tunnel`` and ``dsr`` the servers
have the VIP themselves and answer by an interface on the outside, past the nodes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from support.crossing import Bed
from support.crowd import Crowd, crowd, serving
from support.daemon import inside_of
from support.netns import Lan, Node, lan
from support.owners import Owners, watch
from support.vipnode import VipNode
from support.wait import until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pair.yaml"
VIP, GATEWAY = "198.51.100.10/24", "10.0.1.1/24"
VIPS = {VIP: "eth0", GATEWAY: "eth1"}
ADDRESS, GATEWAY_ADDRESS = "198.51.100.10", "10.0.1.1"
CONTROL = "198.51.100.90"  # a server beside the clients
CONNECTIONS = 1000
NEAR = tuple(f"198.51.100.{100 + n}" for n in range(10))
FAR = tuple(f"203.0.113.{1 + n}" for n in range(10))
PRIORITY = {"one": 200, "two": 100}


class PairBed(Bed):
    """The network, without daemons."""

    def __init__(self, net: Lan, directory: Path, forwarding: str = "nat") -> None:
        super().__init__(net, directory)
        self.forwarding = forwarding
        self.text = EXAMPLE.read_text().replace("forwarding: nat", f"forwarding: {forwarding}")
        self.daemons: dict[str, VipNode] = {}
        for number, name in enumerate(PRIORITY, 1):
            node = self.add_balancer(name, (f"198.51.100.{number}/24",), (f"10.0.1.{number + 1}/24",))
            node.ip("route", "add", "203.0.113.0/24", "via", NEAR[0])
        self.client = self.add_client("client", tuple(f"{address}/24" for address in NEAR))
        for address in FAR:
            self.address(self.client, "lo", f"{address}/32")
        self.control = self.add_client("control", (f"{CONTROL}/24",))
        self.servers = [self._server(name, number) for name, number in (("s10", 10), ("s11", 11))]
        self.ready()
        self._filter()

    def _filter(self) -> None:
        """As network cards do: what a switch floods they pass over unless it is for them, and XDP never sees it."""
        rules = [
            f'oifname "{side}-{node.name}" ether daddr & 01:00:00:00:00:00 == 0 ether daddr != {node.mac(name)} drop'
            for node in self.nodes
            for side, name in (("p", "eth0"), ("q", "eth1"))
        ]
        self.net.nft("table bridge cards {", "chain c {", "type filter hook postrouting priority 0", *rules, "}", "}")

    def _server(self, name: str, number: int) -> Node:
        if self.forwarding == "nat":
            return self.add_inner(name, (f"10.0.1.{number}/24",), (GATEWAY_ADDRESS,))
        node = self.add_client(name, (f"198.51.100.{200 + number}/24",))
        node.ip("route", "add", "203.0.113.0/24", "via", NEAR[0])
        self.hide(node, ADDRESS)
        self.connect_inside(node, f"10.0.1.{number}/24")
        self.attach(node, "eth1", "decapsulate")
        return node

    @property
    def nodes(self) -> list[Node]:
        """Those that run a daemon."""
        return self.balancers

    def daemon(self, name: str, text: str | None = None) -> VipNode:
        """The daemon of a node, not yet started."""
        environment = {"FAIRLEAD_PRIORITY": str(PRIORITY[name])}
        self.daemons[name] = VipNode(self.net.nodes[name], self.directory, text or self.text, environment)
        return self.daemons[name]

    def plug(self, name: str, *, connected: bool, sides: Sequence[str] = ("p",)) -> None:
        """Pull cables of a node, or put them back: ``p`` is the outer one, ``q`` the inner one."""
        for side in sides:
            (self.net.mend if connected else self.net.cut)(f"{side}-{name}")

    def knows(self, owner: str) -> bool:
        """Whether client and servers send to this node what they send to the VIPs."""
        node = self.net.nodes[owner]
        gateways = [server.neighbour(GATEWAY_ADDRESS) for server in self.servers if self.forwarding == "nat"]
        return self.client.neighbour(ADDRESS) == node.mac() and set(gateways) <= {node.mac("eth1")}

    def owned_by(self, name: str) -> bool:
        """Whether this node, and it alone, has both VIPs."""
        return all(
            [node.name for node in self.nodes if node.holds(vip, interface)] == [name]
            for vip, interface in VIPS.items()
        )


class Scene:
    """Both daemons run, ``one`` owns the VIPs, and the crowd talks."""

    def __init__(self, bed: PairBed, people: Crowd, owners: Owners) -> None:
        self.bed, self.crowd, self.owners = bed, people, owners
        self.one, self.two = bed.daemons["one"], bed.daemons["two"]


@contextlib.contextmanager
def pair(directory: Path, forwarding: str = "nat") -> Iterator[PairBed]:
    """A bed for the block, with servers that answer."""
    with contextlib.ExitStack() as stack:
        bed = PairBed(stack.enter_context(lan()), directory, forwarding)
        stack.callback(bed.close)
        for server in (*bed.servers, bed.control):
            stack.enter_context(serving(inside_of(server), 80, server.name))
        yield bed


@contextlib.contextmanager
def scene(
    bed: PairBed,
    sources: Sequence[str] = NEAR,
    connections: int = CONNECTIONS,
    texts: tuple[str | None, str | None] = (None, None),
) -> Iterator[Scene]:
    """Everything runs while the block does.

    Args:
        bed: The network.
        sources: The clients' addresses.
        connections: How many the crowd has.
        texts: Other configurations for the two nodes.
    """
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(bed.daemon("one", texts[0]))
        until(lambda: bed.owned_by("one"), 10, "one owns the VIPs")
        two = stack.enter_context(bed.daemon("two", texts[1]))
        until(lambda: two.vrrp().get("state") == "backup", 10, "two is behind")
        until(lambda: all(it.has_all_up for it in (one, two)), 30, "all servers are up")
        counts = dict.fromkeys(sources, connections // len(sources))
        people = stack.enter_context(crowd(inside_of(bed.client), (ADDRESS, 80), CONTROL, counts))
        until(lambda: "" not in people.phase().servers, 30, "every connection was answered once")
        yield Scene(bed, people, stack.enter_context(watch(bed.net, bed.nodes, VIPS)))
