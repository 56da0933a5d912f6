# SPDX-License-Identifier: Apache-2.0
"""Where a packet goes and why, read from the live maps in the order in which the program looks at them.

Invariant: nothing is taken from what the agent means the maps to hold, but for names of ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fairlead.dataplane.base import Explanation
from fairlead.dataplane.xdp import abi, flows, records
from fairlead.dataplane.xdp.flows import Found
from fairlead.dataplane.xdp.host import Routes
from fairlead.dataplane.xdp.installation import Installation
from fairlead.dataplane.xdp.interfaces import name_of
from fairlead.dataplane.xdp.records import u32
from fairlead.model.net import Endpoint, FlowQuestion, IPAddress
from fairlead.model.state import TableSpec
from fairlead.model.views import ExplainStep
from fairlead.policy.flowhash import flow_hash, flow_message, probes, source_message

_CHOICES = {
    abi.Choice.BY_FLOW: "addresses and ports",
    abi.Choice.BY_SOURCE: "the client's address",
}


@dataclass(frozen=True, slots=True)
class _Server:
    number: int
    record: abi.ServerRecord
    name: str

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(abi.unpacked(self.record.addr), self.record.port)


class Explainer:
    """One question.

    Args:
        installation: What is asked.
        specs: Recipes of tables by digest, as far as they are known.
    """

    def __init__(self, installation: Installation, specs: Mapping[str, TableSpec]) -> None:
        self._in = installation
        self._held = installation.held
        self._maps = installation.kernel.maps
        self._specs = specs
        self._steps: list[ExplainStep] = []

    def explain(self, question: FlowQuestion) -> Explanation | None:
        """The answer; None when no service is there."""
        service = self._service(question)
        if service is None:
            return None
        number, record, name = service
        known = self._known(question, number, record)
        if known is not None:
            server, found, record = known
        else:
            chosen = None if self._refused(question, record) else self._chosen(question, number, record)
            if chosen is None:
                return Explanation(tuple(self._steps), name, None)
            server, found = chosen, None
        self._next_hop(question, record, server)
        self._rewriting(question, record, server, found)
        return Explanation(tuple(self._steps), name, server.name)

    def _say(self, step: str, says: str) -> None:
        self._steps.append(ExplainStep(step, says))

    def _service(self, question: FlowQuestion) -> tuple[int, abi.ServiceRecord, str] | None:
        vip, protocol = question.vip, records.PROTOCOLS[question.protocol]
        family, key = records.listen_key(vip.address, vip.port, protocol)
        raw, where = self._maps[f"listeners{family}"].get(key), f"{vip}"
        if raw is None:
            wide = abi.RangeKey(abi.RANGE_BITS, abi.packed(vip.address), protocol, vip.port)
            raw, where = self._maps["ranges"].get(wide.pack()), f"a range of ports of {vip.address}"
        if raw is None:
            return None
        number = int.from_bytes(raw, "little")
        value = self._maps["services"].get(u32(number))
        held = self._held.services_by_id.get(number)
        if value is None or held is None:
            return None
        attached = self._in.kernel.links.attached.values()
        names = ", ".join(f"{it.name} ({it.mode})" for it in attached) or "no interface: the program sees nothing"
        self._say("interface", f"packets that come in by {names} are looked at")
        record = abi.ServiceRecord.unpack(value)
        says = f"{where}/{question.protocol} is service {held.spec.name}, forwarding {_forwarding(record)}"
        if record.is_settled:
            says += "; its flows have the servers that their slots name, so the flow table is asked only now and then"
        self._say("service", says)
        return number, record, held.spec.name

    def _known(
        self, question: FlowQuestion, number: int, record: abi.ServiceRecord
    ) -> tuple[_Server, Found, abi.ServiceRecord] | None:
        """The server of an established flow, and the service by which it is forwarded: it may be an earlier one."""
        key = flows.flow_key(question.client, question.vip, records.PROTOCOLS[question.protocol])
        settings = self._maps["settings"].get(u32(0)) or b""
        place = self._in.flow_table.find(key, abi.Settings.unpack(settings).secret)
        if place is None:
            self._say("flow", "no entry in the flow table: this is a new flow")
            return None
        index, found = place
        entry, now = found.entry, self._in.census.jiffies()
        raw = self._maps["services"].get(u32(entry.service))
        record = record if raw is None else abi.ServiceRecord.unpack(raw)
        age = _signed(now - entry.seen) / self._in.hertz
        limit = int.from_bytes(record.timeout[entry.state * 4 : entry.state * 4 + 4], "little") / self._in.hertz
        server = self._server(entry.server)
        what = (
            f"entry {index} of the flow table: {flows.STATES[abi.State(entry.state)]}, silent for {max(age, 0):.1f} s"
        )
        if entry.service != number:
            what += f", of before the service was changed, forwarding {_forwarding(record)}"
        if age > limit:
            self._say("flow", f"{what}, which is more than {limit:.0f} s: this is a new flow")
        elif server is None or server.record.generation != entry.generation:
            self._say("flow", f"{what}, but its server has gone: this is a new flow")
        elif server.record.flags & abi.SERVER_RESET:
            self._say("flow", f"{what}, to {server.name}, whose flows are being reset")
        else:
            self._say("flow", f"{what}, to {server.name}; a SYN would be a new flow")
            return server, found, record
        return None

    def _refused(self, question: FlowQuestion, record: abi.ServiceRecord) -> bool:
        if record.mode == abi.Mode.REJECT:
            self._say("mode", "no server may take it: new flows are refused")
            return True
        if record.mode == abi.Mode.DROP:
            self._say("mode", "no server may take it: new flows are dropped")
            return True
        if not record.access:
            self._say("access", "everybody may connect")
            return False
        key = abi.AccessKey(160, record.access.to_bytes(4, "big"), abi.packed(question.client.address))
        if self._maps["access"].get(key.pack()) is None:
            self._say("access", f"{question.client.address} may not connect (allow, deny): dropped")
            return True
        self._say("access", f"{question.client.address} may connect")
        return False

    def _chosen(self, question: FlowQuestion, number: int, record: abi.ServiceRecord) -> _Server | None:
        """The server of a new flow."""
        base, size = record.table_base, record.slots
        if not size:
            self._say("slot", "its table is empty: dropped")
            return None
        if record.choice in {abi.Choice.BY_TURN, abi.Choice.BY_CHANCE}:
            turn = int.from_bytes(self._maps["turns"].get(u32(number)) or b"", "little")
            says = (
                f"slot {turn % size} of {size} is next, by turn" if record.choice == abi.Choice.BY_TURN else "by chance"
            )
            self._say("slot", f"{says}; without a place in the flow table, by the hash of the flow")
            if record.choice == abi.Choice.BY_CHANCE:
                return None
            slots: Iterator[int] = iter([(turn + n) % size for n in range(abi.TRIES + 1)])
        else:
            by_source = record.choice == abi.Choice.BY_SOURCE
            client = question.client
            message = (
                source_message(client.address) if by_source else flow_message(question.protocol, client, question.vip)
            )
            value = flow_hash(record.seed, message)
            slots = probes(value, size)
            self._say("hash", f"{value:016x}, of {_CHOICES[abi.Choice(record.choice)]}")
        for _ in range(abi.TRIES + 1):
            slot = next(slots)
            server = self._in_slot(base, size, slot)
            why = self._passed_over(question, record, server)
            name = server.name if server is not None else "nobody"
            self._say("slot", f"slot {slot} of {size} is that of {name}{f', passed over: {why}' if why else ''}")
            if server is not None and why is None:
                return server
        self._say("slot", f"{abi.TRIES + 1} slots led to no server: dropped")
        return None

    def _in_slot(self, base: int, size: int, slot: int) -> _Server | None:
        block = self._in.slots(base + slot // 4, 1)
        member = int.from_bytes(block[slot % 4 * 2 : slot % 4 * 2 + 2], "little")
        ids = self._in.slots(base + (size + 3) // 4 + member // 2, 1)
        return self._server(int.from_bytes(ids[member % 2 * 4 : member % 2 * 4 + 4], "little"))

    def _passed_over(self, question: FlowQuestion, record: abi.ServiceRecord, server: _Server | None) -> str | None:
        if server is None or not server.record.family:
            return "there is no such server"
        if server.record.flags & abi.SERVER_RESET:
            return "its flows are being reset"
        if record.forwarding == abi.Forwarding.NAT and server.endpoint.address == question.client.address:
            return "it is the client itself"
        return None

    def _server(self, number: int) -> _Server | None:
        raw = self._maps["servers"].get(u32(number))
        held = self._held.servers_by_id.get(number)
        if raw is None or held is None:
            return None
        return _Server(number, abi.ServerRecord.unpack(raw), held.spec.key)

    def _next_hop(self, question: FlowQuestion, record: abi.ServiceRecord, server: _Server) -> None:
        address = server.endpoint.address
        with Routes() as routes:
            route = routes.get(address)
            if route is None or not route.usable:
                self._say("next hop", f"there is no route to {address}: dropped")
                return
            if route.local:
                self._say("next hop", f"{address} is this host itself: dropped")
                return
            via = route.gateway or address
            mac = next((it.mac for it in routes.neighbours() if (it.index, it.address) == (route.index, via)), b"")
        where = f"by {name_of(route.index)}" + (f", through {route.gateway}" if route.gateway else "")
        if record.forwarding == abi.Forwarding.DSR and route.gateway:
            self._say("next hop", f"{address} is not on the link of {where}: dsr cannot reach it, dropped")
            return
        known = f", {mac.hex(':')}" if mac else "; its link address is not known yet, the host asks for it first"
        self._say("next hop", f"{via} {where}{known}")
        if question.vip.address.version != address.version and record.forwarding != abi.Forwarding.TUNNEL:
            self._say("rewriting", f"{address} is of the other address family: dropped")

    def _rewriting(
        self, question: FlowQuestion, record: abi.ServiceRecord, server: _Server, found: Found | None
    ) -> None:
        to = Endpoint(server.endpoint.address, server.endpoint.port or question.vip.port)
        match abi.Forwarding(record.forwarding):
            case abi.Forwarding.NAT:
                self._say("rewriting", f"the destination becomes {to}")
                self._say("replies", self._replies(question, to))
            case abi.Forwarding.FULLNAT:
                if found is not None:
                    near = Endpoint(records.address_of(found.details.near), found.details.near_port)
                    self._say("rewriting", f"the destination becomes {to}, the source {near}")
                else:
                    sources = ", ".join(map(str, self._held.snat)) or "nothing: there is no address to send from"
                    self._say("rewriting", f"the destination becomes {to}, the source a free port of {sources}")
            case abi.Forwarding.DSR:
                self._say("rewriting", "only the link addresses change; the server answers the client itself")
            case abi.Forwarding.TUNNEL:
                source = abi.unpacked(server.record.source)
                outer: IPAddress = server.endpoint.address
                self._say("rewriting", f"wrapped in a packet from {source} to {outer}; the server answers itself")

    def _replies(self, question: FlowQuestion, server: Endpoint) -> str:
        protocol = records.PROTOCOLS[question.protocol]
        for port in (server.port, 0):
            family, key = records.listen_key(server.address, port, protocol)
            raw = self._maps[f"replies{family}"].get(key)
            if raw is not None:
                record = abi.ReplyRecord.unpack(raw)
                if record.flags & abi.REPLY_AMBIGUOUS:
                    return f"what {server} sends is turned back by the flow table, for several VIPs lead there"
                return f"what {server} sends to clients comes from {question.vip}, whichever node turns it back"
        return f"there is no entry for replies of {server}: they would not be turned back"


def _forwarding(record: abi.ServiceRecord) -> str:
    return abi.Forwarding(record.forwarding).name.lower()


def _signed(jiffies: int) -> int:
    jiffies &= 0xFFFFFFFF
    return jiffies - (1 << 32) if jiffies >= 1 << 31 else jiffies
