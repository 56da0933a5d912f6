# SPDX-License-Identifier: Apache-2.0
"""Lets the packets of probes take the way of a service's: two tc programs on the interfaces that they pass.

Nothing is pinned: the filters hold the programs, and these their maps. They stay when the agent dies, and do nothing
then, because no probe is sent; the next agent puts its own in their place. The handle of a filter says whether the
qdisc that it hangs in was made for it, so that cleaning up needs no other memory.

Invariant: a filter that is not ours is never touched, nor the qdisc while there is one in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.host import Host, Routes
from fairlead.dataplane.xdp.kernel import interfaces
from fairlead.dataplane.xdp.libbpf import BpfMap, LoadedObject, TcHook
from fairlead.dataplane.xdp.records import FORWARDINGS, PROTOCOLS, u32
from fairlead.errors import DataPlaneError, FairleadError, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import IPAddress
from fairlead.model.service import Forwarding
from fairlead.protocols.rtfilters import Filter

PRIORITY = 3  # before nearly everybody: a program that ends the search must not hide ours
MADE, FOUND = 0x464C01, 0x464C02  # handles: the qdisc was made for us, or it was there
DIRECTIONS = {"fairlead_out": True, "fairlead_in": False}  # program -> egress
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
        self._last = 0
        self._why: str | None = "it is not set up yet"
        self._loaded: LoadedObject | None = None
        self._reading = threading.Lock()  # packets_of against the end of the map
        self._left_over = True  # filters of an earlier agent may be there

    def mark_of(self, way: Way) -> int:
        """What packets bear that take this way.

        Raises:
            UnsupportedFeature: They cannot; with what to do.
        """
        name = f"probing through {way.passage.vip}"
        if self._why is not None:
            raise UnsupportedFeature(name, self._why)
        mark = self._marks.get(way)
        if mark is None:
            raise UnsupportedFeature(name, f"more than {MAX_WAYS} services and servers are probed in this way")
        if abi.WayRecord.unpack(self._records[way]).near == abi.NOWHERE and _crosses(way):
            family = way.passage.vip.address.version
            raise UnsupportedFeature(name, f"this node has no IPv{family} address but VIPs to probe from: give it one")
        return mark

    def packets_of(self, way: Way) -> int:
        """How many packets have taken this way."""
        with self._reading:
            if self._loaded is None or way not in self._marks:
                return 0
            raw = self._ways.get(u32(self._marks[way]))
        return 0 if raw is None else abi.WayRecord.unpack(raw).packets

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
        for way in self._marks:
            written = self._records.get(way)
            if written is None or _lacks(way, abi.WayRecord.unpack(written)):
                record = self._record(way)
                if record != written:
                    new[way] = record
        self._ways.put_many({u32(self._marks[way]): record for way, record in new.items()})
        self._records.update(new)

    def _record(self, way: Way) -> bytes:
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
        ).pack()

    def _attach(self) -> None:
        """Have our programs on the interfaces that matter, and on no others."""
        vips = {way.passage.vip.address for way in self._wanted}
        wanted = self._host.of_ways(vips, [way.server for way in self._wanted])
        with Routes() as routes:
            for name, index in interfaces().items():
                held = {program: ours(routes, index, program) for program in DIRECTIONS}
                if name in wanted:
                    self._attach_to(name, index, held)
                elif any(held.values()):
                    detach(routes, index)
        self._left_over = False

    def _attach_to(self, name: str, index: int, held: dict[str, list[Filter]]) -> None:
        assert self._loaded is not None
        present = [it for found in held.values() for it in found]
        try:
            handle = present[0].handle if present else MADE if TcHook.create(index) else FOUND
            for program, egress in DIRECTIONS.items():
                loaded = self._loaded.programs[program]
                if [(it.name, it.handle) for it in held[program]] != [(f"{program}:[{loaded.id}]", handle)]:
                    TcHook(index, egress=egress).attach(loaded, handle, PRIORITY, instead=bool(held[program]))
        except OSError as error:
            what = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"
            if not isinstance(error, PermissionError):
                what = f"another filter may have its priority, {PRIORITY} (tc filter show dev {name} egress)"
            raise DataPlaneError(f"tc takes no program on {name} ({error.strerror}): {what}") from error

    # Ending

    def let_go(self) -> None:
        """Leave the filters; they do nothing without probes."""
        self._marks, self._records, self._wanted = {}, {}, frozenset()
        self._why = "it is not set up yet"
        with self._reading:
            if self._loaded is not None:
                self._loaded.close()
                self._loaded = None

    def remove(self) -> None:
        """Leave nothing in the kernel."""
        self.let_go()
        cleanup()
        self._left_over = False


def ours(routes: Routes, index: int, program: str) -> list[Filter]:
    """The filters of one of our programs on an interface."""
    found = routes.filters(index, egress=DIRECTIONS[program])
    return [it for it in found if _is_ours(it, program)]


def _is_ours(it: Filter, program: str) -> bool:
    """By kind, place and name, which libbpf makes of the program's and its id."""
    named = it.kind == "bpf" and it.name.startswith(f"{program}:[")
    return named and it.priority == PRIORITY and it.handle in (MADE, FOUND)


def detach(routes: Routes, index: int) -> bool:
    """Take our programs from an interface, and the qdisc if it was made for them; whether there was anything."""
    found = [(program, it) for program in DIRECTIONS for it in ours(routes, index, program)]
    for program, it in found:
        TcHook(index, egress=DIRECTIONS[program]).detach(it.handle, it.priority)
    made = any(it.handle == MADE for _, it in found)
    if made and not any(routes.filters(index, egress=egress) for egress in DIRECTIONS.values()):
        TcHook.destroy(index)
    return bool(found)


def cleanup() -> list[str]:
    """Remove every filter of ours in this network namespace; what that was, in words."""
    try:
        with Routes() as routes:
            return [f"tc programs of interface {name}" for name, index in _by_name() if detach(routes, index)]
    except OSError:  # no netlink: then nothing was attached from here
        return []


def _by_name() -> Iterator[tuple[str, int]]:
    yield from sorted(interfaces().items())


def _packed(address: IPAddress | None) -> bytes:
    return abi.NOWHERE if address is None else abi.packed(address)


def _crosses(way: Way) -> bool:
    """Whether the VIP is of the other address family than the server."""
    return way.server.version != way.passage.vip.address.version


def _lacks(way: Way, record: abi.WayRecord) -> bool:
    """Whether something was not known when it was written."""
    tunnel = way.passage.forwarding is Forwarding.TUNNEL
    return (tunnel and record.source == abi.NOWHERE) or (_crosses(way) and record.near == abi.NOWHERE)
