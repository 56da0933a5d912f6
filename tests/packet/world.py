# SPDX-License-Identifier: Apache-2.0
"""One description of services, put into the program's maps and into the oracle alike, and packets sent to both."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.held import ServiceHeld
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.settle import Settler
from support.models import service_spec
from support.oracle.forward import Forwarder
from support.oracle.nouns import Outcome, Reply, Server, Service
from support.xdp import LONG, NARROW, OUTSIDE, SEED, Bed, Port

FORWARDING = {
    "nat": abi.Forwarding.NAT,
    "fullnat": abi.Forwarding.FULLNAT,
    "dsr": abi.Forwarding.DSR,
    "tunnel": abi.Forwarding.TUNNEL,
}
CHOICE = {
    "flow": abi.Choice.BY_FLOW,
    "source": abi.Choice.BY_SOURCE,
    "turn": abi.Choice.BY_TURN,
    "chance": abi.Choice.BY_CHANCE,
}
MODE = {"forward": abi.Mode.FORWARD, "reject": abi.Mode.REJECT, "drop": abi.Mode.DROP}
FATES = [c for c in abi.Counter if c.name.startswith(("PASS_", "DROP_", "SENT_"))]
SNAT = ("10.0.1.1", "2001:db8:1::1")


@dataclass
class World:
    """Services in both."""

    bed: Bed
    oracle: Forwarder = field(default_factory=Forwarder)
    unfinished: bool = False  # packets of local senders may come
    _access: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _seen: tuple[int, ...] = ()
    _replies: list[tuple[str, int, abi.ReplyRecord]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen = self.bed.raw_counters()
        self.oracle.unfinished = self.unfinished
        if self.unfinished:
            self.generic(NARROW)

    def generic(self, port: Port) -> None:
        """This port carries the program in generic mode."""
        self.oracle.generic.add(port.name)
        self.bed.generic(port)

    def snat(self, *addresses: str, ports: tuple[int, int] = (1024, 32767)) -> None:
        """Addresses and ports fullnat sends from."""
        self.oracle.snat = tuple(ip_address(a) for a in addresses)
        self.oracle.snat_ports = ports
        self.settings = abi.Settings(wide=len(self.oracle.ranges), snat_first=ports[0], snat_last=ports[1])
        self.bed.settings(self.settings, snat=addresses)

    def server(
        self,
        number: int,
        endpoint: str,
        *,
        reset: bool = False,
        ambiguous: bool = False,
        source: str = "",
        spread: int = 0,
    ) -> None:
        """A real server; the same id again changes it."""
        host, _, port = endpoint.rpartition(":")
        self.oracle.servers[number] = Server(
            ip_address(host.strip("[]")), int(port), reset, ambiguous, ip_address(source) if source else None, spread
        )
        flags = abi.SERVER_RESET * reset | abi.SERVER_AMBIGUOUS * ambiguous
        self.bed.server(number, endpoint, flags=flags, source=source, spread=spread)

    def service(
        self,
        number: int,
        forwarding: str,
        members: tuple[int, ...],
        slots: tuple[int, ...],
        *,
        choice: str = "flow",
        mode: str = "forward",
        allowed: tuple[str, ...] | None = None,
        timeout: bytes = LONG,
        new_per_source: int = 0,
    ) -> None:
        """A service; the same id again changes it, with a table of its own."""
        table = self.bed.table(members, slots) if slots else (0, 0)
        nets = None if allowed is None else tuple(ip_network(net) for net in allowed)
        access = 0
        if allowed is not None:
            access = next(self._access)
            for net in allowed:
                self.bed.allow(access, net)
        before = self.oracle.services.get(number)
        self.oracle.services[number] = Service(
            forwarding, members, slots, SEED, choice, mode, nets, table[0], before.turn if before else 0
        )
        self.bed.service(
            number,
            FORWARDING[forwarding],
            table,
            choice=CHOICE[choice],
            mode=MODE[mode],
            access=access,
            timeout=timeout,
            new_per_source=new_per_source,
        )

    def listen(self, service: int, vip: str, protocol: int, first: int, last: int | None = None) -> None:
        """Where a service is offered."""
        address = ip_address(vip)
        self.oracle.vips.add(address)
        if last is None:
            self.oracle.listeners[(address, first, protocol)] = service
        else:
            self.oracle.ranges.append((address, protocol, first, last, service))
        self.bed.listen(service, vip, protocol, first, last)
        if last is not None:
            self.snat(*map(str, self.oracle.snat), ports=self.oracle.snat_ports)

    def reply(self, endpoint: str, protocol: int, reply: Reply) -> None:
        """How replies of a nat server are turned back."""
        host, _, number = endpoint.rpartition(":")
        self.oracle.replies[(ip_address(host.strip("[]")), int(number), protocol)] = reply
        flags = abi.REPLY_AMBIGUOUS * reply.ambiguous | abi.REPLY_GUESS * reply.guess
        record = abi.ReplyRecord(abi.packed(reply.vip), reply.port, flags, reply.service, reply.server)
        self._replies.append((endpoint, protocol, record))
        self.bed.reply(*self._replies[-1])

    def send(self, frame: bytes, port: Port = OUTSIDE) -> Outcome:
        """Send to the program alone; what it did."""
        run = self.bed.send(frame, port)
        fates, _ = self._news()
        assert len(fates) <= 1, fates
        return Outcome(run.verdict, run.packet, fates[0] if fates else None)

    def both(self, frame: bytes, port: Port = OUTSIDE) -> Outcome:
        """Send to both, and compare everything; what they did."""
        wanted = self.oracle.process(frame, port)
        run = self.bed.send(frame, port)
        fates, notes = self._news()
        got = Outcome(run.verdict, run.packet, fates[0] if len(fates) == 1 else None)
        context = (
            f"\nframe  {frame.hex()}\nby     {port.name}\nwanted {show(wanted)} {self.oracle.noted}"
            f"\ngot    {show(got)} {fates} {notes}"
        )
        wanted_fates = [wanted.counter] if wanted.counter is not None else []
        assert (got.verdict, fates) == (wanted.verdict, wanted_fates), context
        assert sorted(notes) == sorted(self.oracle.noted), context
        assert got.frame == wanted.frame, context
        return got

    def _news(self) -> tuple[list[abi.Counter], list[abi.Counter]]:
        now, before = self.bed.raw_counters(), self._seen
        self._seen = now
        if now == before:
            return [], []
        grown = [(c, now[c] - before[c]) for c in abi.Counter if now[c] != before[c]]
        fates = [c for c, n in grown for _ in range(n) if c in FATES]
        return fates, [c for c, n in grown for _ in range(n) if c not in FATES]

    def resume(self) -> None:
        """What was counted meanwhile does not matter."""
        self._seen = self.bed.raw_counters()

    def forget(self) -> None:
        """Forget all flows, in both."""
        self.bed.forget()
        self.resume()
        self.oracle.flows.clear()
        self.oracle.fragments.clear()
        self.oracle.rotor = 0
        for service in self.oracle.services.values():
            service.turn = 0
        for reply in self.oracle.replies.values():
            reply.direct = False
        for key in self._replies:
            self.bed.reply(*key)

    def settle(self, settler: Settler) -> None:
        """Settle what may be settled, as the agent does a second after a change."""
        held = Holdings(hertz=250, clock=lambda: 0.0)
        mirror = held.mirrors["services"]
        mirror.use(self.bed.maps["services"])
        for number, service in self.oracle.services.items():
            raw = self.bed.maps["services"].get(u32(number))
            assert raw is not None
            mirror.content[u32(number)] = raw
            spec = service_spec(str(number), "table")
            held.services_by_id[number] = ServiceHeld(number, spec)
            plain = service.choice == "flow" and service.mode == "forward" and service.forwarding != "fullnat"
            if plain and service.allowed is None:
                held.unsettled.add(number)
        settler.step(held, 10.0)
        held.flush()

    def churn(self, source: random.Random) -> None:
        """Change something, as an operator or a health check would."""
        kind = source.random()
        number = source.choice(sorted(n for n in self.oracle.servers if n < 60))
        if kind < 0.5:
            old = self.oracle.servers[number]
            host = f"[{old.address}]" if old.address.version == 6 else str(old.address)
            self.server(
                number,
                f"{host}:{old.port}",
                reset=not old.reset,
                ambiguous=old.ambiguous,
                source=str(old.source) if old.source else "",
                spread=old.spread,
            )
            return
        chosen = source.choice(sorted(self.oracle.services))
        service = self.oracle.services[chosen]
        if service.mode == "reject" or not service.members:
            return
        slots = list(service.slots)
        source.shuffle(slots)
        mode = source.choice(("forward", "forward", "forward", "drop", "reject")) if kind > 0.8 else "forward"
        allowed = None if service.allowed is None else tuple(map(str, service.allowed))
        self.service(
            chosen, service.forwarding, service.members, tuple(slots), choice=service.choice, mode=mode, allowed=allowed
        )


def show(outcome: Outcome) -> str:
    """One line about an outcome."""
    verdict = {1: "DROP", 2: "PASS", 3: "TX", 4: "REDIRECT"}.get(outcome.verdict, str(outcome.verdict))
    return f"{verdict:8} {outcome.counter.name if outcome.counter else '-':20} {outcome.frame.hex()}"


def furnish(world: World) -> World:
    """Services of every kind, for the fuzzers: VIPs 10.0.0.100-105 and 2001:db8::100-105."""
    world.snat(*SNAT, ports=(2000, 30000))
    for n in range(4):
        world.server(10 + n, f"10.0.1.{10 + n}:8080", ambiguous=n == 3)
        world.server(20 + n, f"[2001:db8:1::{0x10 + n:x}]:8080", ambiguous=n == 3)
        world.server(30 + n, f"10.0.1.{10 + n}:0")
        world.server(40 + n, f"[2001:db8:1::{0x10 + n:x}]:0", source="2001:db8:1::1", spread=0xFFFF)
        world.server(50 + n, f"10.0.1.{10 + n}:0", source="10.0.1.1", spread=0xFF)
    world.server(60, "10.9.0.5:8080")  # behind a router
    world.server(61, "10.0.1.200:8080")  # never resolved
    world.server(62, "10.8.0.1:8080")  # no route
    world.server(63, "10.0.2.10:0", source="10.0.2.1")  # a narrow link
    world.server(64, "[2001:db8:2::10]:0", source="2001:db8:2::1")
    world.server(65, "[2001:db8:1::ff]:0", source="2001:db8:1::1")  # never resolved
    world.server(66, "192.0.2.1:8080")  # a client that is a server as well
    mixed = tuple(n % 4 for n in range(13))
    four, six = (10, 11, 12, 13), (20, 21, 22, 23)
    for protocol in (6, 17):
        base = protocol * 10
        world.service(base, "nat", (*four, 60, 61, 62, 66), tuple(n % 8 for n in range(23)))
        world.service(base + 1, "nat", six, mixed, choice="turn")
        world.service(base + 2, "fullnat", (10, 11, 12, 60), mixed, choice="source")
        world.service(base + 3, "fullnat", (20, 21, 22), tuple(n % 3 for n in range(7)))
        world.service(base + 4, "dsr", (30, 31, 60, 61), mixed)
        world.service(base + 5, "dsr", (40, 41, 30), tuple(n % 3 for n in range(7)), choice="source")
        world.service(base + 6, "tunnel", (50, 51, 42, 63, 64, 61), tuple(n % 6 for n in range(17)))
        world.service(base + 7, "tunnel", (40, 41, 64, 50, 65), tuple(n % 5 for n in range(11)))
        world.service(base + 8, "nat", (), (), mode="reject")
        world.service(base + 9, "nat", four, mixed, allowed=("192.0.2.0/25", "2001:db8:c::/64"))
        world.service(base + 100, "nat", (13, 66), (0, 1))
        world.service(base + 101, "nat", (33,), (0,))
        for n, vip in enumerate(("10.0.0.100", "2001:db8::100")):
            world.listen(base + n, vip, protocol, 80)
            world.listen(base + 2 + n, vip, protocol, 81)
            world.listen(base + 4 + n, vip, protocol, 82)
            world.listen(base + 6 + n, vip, protocol, 83)
            world.listen(base + 8, vip, protocol, 84)
        world.listen(base + 9, "10.0.0.101", protocol, 80)
        world.listen(base + 100, "10.0.0.102", protocol, 80)
        world.listen(base + 101, "10.0.0.103", protocol, 1000, 1999)
        world.listen(base + 6, "10.0.0.104", protocol, 0, 65535)
        world.listen(base + 7, "2001:db8::104", protocol, 0, 65535)
        vip4, vip6 = ip_address("10.0.0.100"), ip_address("2001:db8::100")
        for n in range(4):
            shared = n == 3
            world.reply(f"10.0.1.{10 + n}:8080", protocol, Reply(vip4, 80, base, 10 + n, shared))
            world.reply(f"[2001:db8:1::{0x10 + n:x}]:8080", protocol, Reply(vip6, 80, base + 1, 20 + n, shared))
        world.reply("10.0.1.13:0", protocol, Reply(ip_address("10.0.0.103"), 0, base + 101, 33))
        world.reply("192.0.2.1:8080", protocol, Reply(vip4, 80, base, 66, ambiguous=True, guess=True))
        world.reply("10.9.0.5:8080", protocol, Reply(vip4, 80, base, 60))
    return world
