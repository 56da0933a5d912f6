# SPDX-License-Identifier: Apache-2.0
"""Lets the packets of probes take the way of a service's: two tc programs on the interfaces that they pass.

Nothing is pinned: the filters hold the programs, and these their maps. They stay when the agent dies, and do nothing
then, because no probe is sent; the next agent puts its own in their place.

Invariant: a way has a mark of its own, which no other gets soon; what keeps packets from it is said, not passed over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from fairlead.dataplane.xdp import abi, filters
from fairlead.dataplane.xdp.host import Host, Routes
from fairlead.dataplane.xdp.interfaces import interfaces
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.records import FORWARDINGS, PROTOCOLS, u32
from fairlead.errors import FairleadError, OffLink, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import IPAddress
from fairlead.model.service import Forwarding

NOT_YET = "it is not set up yet"
PACKETS = dict(abi.WayRecord.LAYOUT.members)["packets"]
MAX_WAYS = 0x3FFF  # marks leave the two bits alone by which kube-proxy knows its packets


class Ways:
    """The ways that probes take now. All but ``mark_of`` and ``packets_of`` is to be called by one thread at a time.

    Args:
        program: Object file.
        host: Where packets go.
        event: Called with a kind, a subject and a message of something people should know.
    """

    def __init__(self, program: Path, host: Host, event: Callable[[str, str, str], None]) -> None:
        self._program = program
        self._host = host
        self._event = event
        self._wanted: frozenset[Way] = frozenset()
        self._marks: dict[Way, int] = {}
        self._records: dict[Way, bytes] = {}  # as written
        self._incomplete: set[Way] = set()  # written before everything was known
        self._homeless: set[Way] = set()  # of these: no address is known to come from
        self._counts: dict[Way, int] = {}  # packets that had taken it when a mark was last asked for
        self._last = 0
        self._why: str | None = NOT_YET
        self._loaded: LoadedObject | None = None
        self._reading = threading.Lock()  # packets_of against the end of the map
        self._attached: set[int] = set()  # interfaces
        self._left_over = True  # filters of an earlier agent may be there

    def mark_of(self, way: Way) -> int:
        """What packets bear that take this way.

        Raises:
            OffLink: They do not get to the server by it.
            UnsupportedFeature: They cannot take it; with what to do.
        """
        name = f"probing through {way.passage.vip}"
        if self._why is not None:
            raise UnsupportedFeature(name, self._why)
        mark = self._marks.get(way)
        if mark is None and way not in self._wanted:
            raise UnsupportedFeature(name, NOT_YET)
        if mark is None:
            raise UnsupportedFeature(name, f"more than {MAX_WAYS} services and servers are probed in this way")
        if way in self._homeless:
            family = way.passage.vip.address.version
            raise UnsupportedFeature(name, f"this node has no IPv{family} address but VIPs to probe from: give it one")
        if way.passage.forwarding is Forwarding.DSR:
            self._check_link(way)
        return mark

    def _check_link(self, way: Way) -> None:
        """See that a server is no farther than dsr reaches; the route is asked only when no packet came through."""
        before, now = self._counts.get(way, 0), self.packets_of(way)
        self._counts[way] = now
        if now != before:
            return
        gateway = self._host.gateway(way.server)
        if gateway is not None:
            raise OffLink(
                f"probing through {way.passage.vip}",
                f"{way.server} is behind the gateway {gateway}, and dsr reaches servers on the link alone: put it on "
                "the same link, or use `forwarding: tunnel`",
            )

    def packets_of(self, way: Way) -> int:
        """How many packets have taken this way."""
        with self._reading:
            if self._loaded is None or way not in self._marks:
                return 0
            raw = self._ways.get(u32(self._marks[way]))
        return 0 if raw is None else int.from_bytes(raw[PACKETS:], "little")

    def set(self, wanted: frozenset[Way]) -> None:
        """Have exactly these; those that are no longer wanted end a little later, for probes may be under way."""
        self._wanted = wanted
        if wanted:
            self._have()

    def look_after(self) -> None:
        """Put right what has changed: interfaces, routes, filters that something else took away."""
        if self._wanted:
            for way in self._marks.keys() - self._wanted:
                self._ways.delete(u32(self._marks.pop(way)))
                self._records.pop(way)
                self._counts.pop(way, None)
                self._incomplete.discard(way)
                self._homeless.discard(way)
            self._have()
        elif self._loaded is not None or self._left_over:
            self.remove()

    def _have(self) -> None:
        try:
            if self._loaded is None:
                self._loaded = LoadedObject(self._program)
            self._number()
            self._write()
            self._attach()
        except (FairleadError, OSError) as error:
            self._trouble(f"{error}")
        else:
            self._why = None

    def _trouble(self, why: str) -> None:
        if why != self._why:
            self._event("ways_failed", "probes through services", why)
        self._why = why

    @property
    def _ways(self) -> BpfMap:
        assert self._loaded is not None
        return self._loaded.maps["ways"]

    def _number(self) -> None:
        """Give every way a mark; numbers come round, so that a late packet does not meet another way's."""
        used = set(self._marks.values())
        for way in self._wanted - self._marks.keys():
            if len(used) >= MAX_WAYS:
                return
            while True:
                self._last = self._last % MAX_WAYS + 1
                mark = abi.WAY_MARK | self._last
                if mark not in used:
                    break
            used.add(mark)
            self._marks[way] = mark

    def _write(self) -> None:
        new = {}
        for way in (self._marks.keys() - self._records.keys()) | self._incomplete:
            record = self._record(way)
            homeless = _crosses(way) and record.near == abi.NOWHERE
            unrouted = way.passage.forwarding is Forwarding.TUNNEL and record.source == abi.NOWHERE
            _have(self._homeless, way, homeless)
            _have(self._incomplete, way, homeless or unrouted)
            if record.pack() != self._records.get(way):
                new[way] = record.pack()
        self._ways.put_many({u32(self._marks[way]): record for way, record in new.items()})
        self._records.update(new)

    def _record(self, way: Way) -> abi.WayRecord:
        vip = way.passage.vip
        tunnel = way.passage.forwarding is Forwarding.TUNNEL
        return abi.WayRecord(
            addr=abi.packed(way.server),
            server_family=way.server.version,
            source=_packed(self._host.tunnel_source(way.server) if tunnel else None),
            spread=bytes(4),
            vip=abi.packed(vip.address),
            near=_packed(self._host.own_address(vip.address) if _crosses(way) else None),
            port=vip.port,
            family=vip.address.version,
            proto=PROTOCOLS[way.passage.protocol],
            forwarding=FORWARDINGS[way.passage.forwarding],
        )

    def _attach(self) -> None:
        """Have our programs on the interfaces that matter, and on no others."""
        assert self._loaded is not None
        vips = {way.passage.vip.address for way in self._wanted}
        wanted = self._host.of_ways(vips, [way.server for way in self._wanted])
        with Routes() as routes:
            for name, index in interfaces().items():
                if name in wanted:
                    self._attached.add(index)
                    filters.attach(routes, name, index, self._loaded.programs)
                elif self._left_over or index in self._attached:
                    filters.detach(routes, index)
        self._attached = set(wanted.values())
        self._left_over = False

    # Ending

    def let_go(self) -> None:
        """Leave the filters; they do nothing without probes."""
        self._marks, self._records, self._counts, self._wanted = {}, {}, {}, frozenset()
        self._incomplete, self._homeless = set(), set()
        self._why = NOT_YET
        with self._reading:
            if self._loaded is not None:
                self._loaded.close()
                self._loaded = None

    def remove(self) -> None:
        """Leave nothing in the kernel."""
        self.let_go()
        filters.cleanup()
        self._attached, self._left_over = set(), False


def _packed(address: IPAddress | None) -> bytes:
    return abi.NOWHERE if address is None else abi.packed(address)


def _crosses(way: Way) -> bool:
    """Whether the VIP is of the other address family than the server."""
    return way.server.version != way.passage.vip.address.version


def _have(these: set[Way], way: Way, wanted: bool) -> None:
    """Have a way among these, or not."""
    (these.add if wanted else these.discard)(way)
