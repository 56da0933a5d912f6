# SPDX-License-Identifier: Apache-2.0
"""Holdings and the kernel together: large enough maps, the memory that is shared with them, interfaces, and the end.

Invariant: a new generation is complete before any interface carries its program; until then the old one forwards.
"""

from __future__ import annotations

import mmap
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fairlead.dataplane.xdp import abi, census, offloads, pins, records
from fairlead.dataplane.xdp.carry import Carrier, note_layouts
from fairlead.dataplane.xdp.census import Census
from fairlead.dataplane.xdp.flows import FlowTable
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.host import Host, some
from fairlead.dataplane.xdp.kernel import MASKS, Build, Kernel
from fairlead.dataplane.xdp.libbpf.binding import possible_cpus
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.links import GENERIC
from fairlead.dataplane.xdp.programs import Programs
from fairlead.dataplane.xdp.records import u32
from fairlead.dataplane.xdp.resolver import Resolver
from fairlead.dataplane.xdp.room import MAX_SERVICES, Needs, sizes_of
from fairlead.dataplane.xdp.settle import Settler
from fairlead.errors import DataPlaneError, UnsupportedFeature
from fairlead.model.net import IPAddress
from fairlead.model.service import Forwarding
from fairlead.model.xdp import XdpSettings

NEW_FLOWS_PER_SECOND = 125_000  # a CPU stores no more, so that a flood does not wash out what is established
ANSWERS_PER_SECOND = 2_000  # RST and ICMP errors of a CPU
SNAT_PORTS = (1024, 32767)  # below the ports that this host's own connections leave from
_NEAR_PART = 2048  # entries of the address filter


@dataclass(frozen=True, slots=True)
class Places:
    """Where services are offered, and servers by which routes are asked for, when holdings had moved so often."""

    moves: int = -1
    addresses: frozenset[IPAddress] = frozenset()
    servers: Sequence[IPAddress] = ()
    families: Sequence[int] = ()  # of the addresses


class Installation:
    """What is held, in the kernel.

    Args:
        settings: Of the configuration.
        programs: Their object files.
        host: Where packets go.
        event: Called with a kind, a subject and a message of something people should know.
        root: Where to pin; None: the place of this network namespace.
    """

    def __init__(
        self,
        settings: XdpSettings,
        programs: Programs,
        host: Host,
        event: Callable[[str, str, str], None],
        root: Path | None,
    ) -> None:
        self.settings = settings
        self.kernel = Kernel(programs.forward, event, root)
        self.resolver = Resolver(programs.resolve, self.kernel.root)
        self.hertz = census.hertz()
        self.held = self._nothing(host)
        self.host = host
        self.unattached: str | None = None  # why an interface does not carry the program
        self._event = event
        self._counting = programs.census
        self._settling = programs.settle
        self._carrying = programs.carry
        self._census: Census | None = None
        self._settler: Settler | None = None
        self._flow_table: FlowTable | None = None
        self._memory: dict[str, mmap.mmap] = {}
        self._unfinished = False  # whether packets may come whose checksum was left to the hardware
        self._places = Places()
        self._sought: tuple[int, Mapping[str, int]] | None = None  # interfaces, when holdings had moved so often

    def _nothing(self, host: Host) -> Holdings:
        return Holdings(self.hertz, source_of=host.tunnel_source)

    @property
    def running(self) -> bool:
        """Whether the maps are there."""
        return self._census is not None

    @property
    def census(self) -> Census:
        """Counts flows."""
        assert self._census is not None
        return self._census

    @property
    def settler(self) -> Settler:
        """Finds services that need not ask the flow table."""
        assert self._settler is not None
        return self._settler

    @property
    def flow_table(self) -> FlowTable:
        """The flow table."""
        assert self._flow_table is not None
        return self._flow_table

    def adopt(self) -> bool:
        """Take over what an earlier agent left; whether there was anything.

        Raises:
            UnsupportedFeature, DataPlaneError: It cannot be driven from here.
        """
        if not self.kernel.adopt():
            return False
        if not self.kernel.has_our_layout:
            self._event("other_layout", "XDP", "the tables in the kernel are of another version; they are replaced")
            return False
        for index in self.kernel.links.attached:
            self.resolver.keep(index)
        self._unfinished = bool(self.kernel.meta().get("constants", {}).get("unfinished_sums"))
        if not self.kernel.is_current:
            self._replace_program()
            self._event("xdp_replaced", "XDP program", "this version's program took over, with all flows")
        self._bind()
        return True

    def _replace_program(self) -> None:
        """The same maps, another program."""
        build = Build(self._sizes_now(), self._constants())
        self.kernel.renew(build, lambda maps, _fresh: note_layouts(maps["names_meta"]))
        self.kernel.finish()

    def have_room(self, needs: Needs) -> None:
        """Make the maps large enough; the program is loaded now if it was not.

        Raises:
            UnsupportedFeature, DataPlaneError: It is not possible.
        """
        wanted = sizes_of(needs, self.settings.flow_table, slack=1)
        if self.kernel.fits(Build(wanted, self._constants())):
            return
        pins.ensure_bpffs(self._event)
        if not self.running:
            self._unfinished = self.host.leaves_checksums()
        sizes = sizes_of(needs, self.settings.flow_table, slack=2)
        if self.running:
            now = self._sizes_now()
            sizes = {name: max(size, now.get(name, 0)) for name, size in sizes.items()}
        takes_over = self.running
        self.kernel.renew(Build(sizes, self._constants()), self._fill)
        self._bind()
        if takes_over:  # else it forwards once it was filled
            self.kernel.finish()

    def finish(self) -> None:
        """Everything was written: this generation is the one that forwards."""
        before = self.kernel.before
        if before is None or self.kernel.is_finished:
            self.kernel.finish()
            return
        try:
            with Carrier(self._carrying, before.maps, self.kernel.maps, self.held, self._masks()) as carrier:
                self._carry(carrier)
        except (DataPlaneError, UnsupportedFeature) as error:
            self.kernel.finish()
            self._event(
                "flows_forgotten",
                "XDP",
                f"flows of the version before are chosen anew, because its tables cannot be read: {error}; "
                "services with `scheduler: maglev` choose the same servers",
            )

    def _carry(self, carrier: Carrier) -> None:
        """All flows before the program changes; then those that were born meanwhile, on either side of the change."""
        started = self.census.jiffies()
        carrier.carry()
        again = self.census.jiffies()
        carrier.carry(since=started)
        self.kernel.finish(lambda: carrier.carry(since=again))
        self._event("flows_carried", "XDP", f"{carrier.carried} flows of the version before go on in new tables")

    def _masks(self) -> dict[str, int]:
        maps = self.kernel.maps
        constants = self._constants()
        return {mask: maps[name].max_entries - 1 for mask, name in MASKS.items()} | {
            "touch_shift": constants["touch_shift"]
        }

    def _constants(self) -> dict[str, int]:
        return {
            "hop_ttl": max(1, self.hertz // 25),
            "fragment_ttl": 30 * self.hertz,
            "touch_shift": records.epoch_shift(self.hertz),
            "resolver": int(self.resolver.supported()),
            "unfinished_sums": int(self._unfinished),
        }

    def _sizes_now(self) -> dict[str, int]:
        return {name: item.max_entries for name, item in self.kernel.maps.items()}

    def _fill(self, maps: Mapping[str, BpfMap], fresh: frozenset[str]) -> None:
        """Put into new maps what the old ones had."""
        if "flows4" in fresh or self.held.settings.secret == bytes(16):
            self.held.settings = self._settings()
        self.held.unsettle()  # marks may be new, and a round over them is not gone on with
        self.held.write_settings()
        note_layouts(maps["names_meta"])
        for name, mirror in self.held.mirrors.items():
            mirror.use(maps[name])
            if name in fresh:
                mirror.refill()
            else:
                mirror.flush_puts()
        old = self.kernel.maps if self.running else {}  # those of another layout are not ours to read
        for name in ("slots", "near"):
            if name in fresh and name in old:
                with old[name].memory() as before, maps[name].memory() as after:
                    after[: len(before)] = before[:]
        for name in ("service_traffic", "server_traffic"):
            if name in fresh and name in old:
                _copy_rows(old[name], maps[name])

    def _settings(self) -> abi.Settings:
        window = (1 << abi.WINDOW_SHIFT) / self.hertz
        return abi.Settings(
            brake=int(NEW_FLOWS_PER_SECOND * window),
            answers=max(1, int(ANSWERS_PER_SECOND * window)),
            cpus=possible_cpus(),
            snat_first=SNAT_PORTS[0],
            snat_last=SNAT_PORTS[1],
            secret=secrets.token_bytes(16),
        )

    def _bind(self) -> None:
        """Work with the maps of the present generation."""
        self._unbind()
        maps, held = self.kernel.maps, self.held
        for name, mirror in held.mirrors.items():
            mirror.use(maps[name])
        self._memory = {name: maps[name].memory() for name in ("slots", "near")}
        self._flow_table = FlowTable(maps)
        self._census = Census(self._counting, maps, self.hertz)
        self._settler = Settler(self._settling, maps, records.epoch_shift(self.hertz))
        held.server_ids.capacity = maps["servers"].max_entries
        held.service_ids.capacity = min(maps["services"].max_entries, MAX_SERVICES)
        held.extents.grow(maps["slots"].max_entries)
        held.write_slots, held.write_near, held.reset_counters = self._write_slots, self._write_near, self._reset
        deque(self.refresh_near(), maxlen=0)

    def _unbind(self) -> None:
        for memory in self._memory.values():
            memory.close()
        self._memory = {}
        if self._flow_table is not None:
            self._flow_table.close()
            self._flow_table = None
        if self._census is not None:
            self._census.close()
            self._census = None
        if self._settler is not None:
            self._settler.close()
            self._settler = None

    def slots(self, base: int, units: int) -> bytes:
        """A part of the slot memory."""
        return self._memory["slots"][base * abi.SLOT_UNIT : (base + units) * abi.SLOT_UNIT]

    def _write_slots(self, base: int, block: bytes) -> None:
        at = base * abi.SLOT_UNIT
        self._memory["slots"][at : at + len(block)] = block

    def _write_near(self, index: int, bit: int) -> None:
        self._memory["near"][index] |= bit

    def _reset(self, kind: str, number: int) -> None:
        for name in ("service_traffic", "turns") if kind == "service" else ("server_traffic",):
            item = self.kernel.maps[name]
            row = item.get(u32(number))
            if row is not None and any(row):
                item.put(u32(number), bytes(len(row)))

    def room_of(self, name: str) -> int:
        """Entries that a map has left."""
        return self.kernel.maps[name].max_entries - len(self.held.mirrors[name].content)

    def refresh_near(self) -> Iterator[None]:
        """Set the bits of the address filter that something cleared, some at a time."""
        wanted = dict(self.held.near)
        for address in self.held.snat:
            index = abi.near_index(abi.packed(address))
            wanted[index] = wanted.get(index, 0) | abi.NEAR_VIP
        entries = iter(wanted.items())
        while part := list(islice(entries, _NEAR_PART)):
            memory = self._memory["near"]
            for index, bits in part:
                if memory[index] & bits != bits:
                    memory[index] |= bits
            yield

    # Interfaces and addresses

    def seek(self) -> Iterator[None]:
        """Ask which interfaces are to carry the program, a little at a time, for ``look_after_interfaces``."""
        self.locate()
        places = self._places
        found = (yield from self.host.seek(places.addresses, places.servers)) if places.addresses else {}
        self._sought = places.moves, found

    def locate(self) -> None:
        """Find out where services and servers are, if any have moved."""
        held = self.held
        if self._places.moves != held.moves:
            addresses = frozenset(it.listen.address for it in held.listeners)
            servers = some(it.spec.endpoint.address for it in held.servers.values())
            families = sorted({it.version for it in addresses})
            self._places = Places(held.moves, addresses, servers, families)

    def look_after_interfaces(self) -> bool:
        """Have the program on every interface that matters, and say what keeps packets from being forwarded.

        Which these are is asked now unless ``seek`` has just done so.

        Returns:
            Whether somebody had taken it from one.
        """
        if not self.running:
            return False
        held = self.held
        lost = self.kernel.check_links()
        for index in lost:
            self.resolver.forget(index)
            self._event("xdp_lost", f"interface {index}", "the interface, or the link of its XDP program, has gone")
        self._keep_sources()
        if self._sought is None or self._sought[0] != held.moves:
            deque(self.seek(), maxlen=0)
        assert self._sought is not None
        (_, wanted), self._sought = self._sought, None
        self.unattached = None
        for name, index in wanted.items():
            try:
                self.resolver.keep(index)
                self.kernel.attach(name, index, self.settings.mode)
            except DataPlaneError as error:
                self.unattached = str(error)
        if self.settings.interfaces is not None and held.listeners:
            for index in set(self.kernel.links.attached) - set(wanted.values()):
                self.kernel.links.detach(index)
                self.resolver.forget(index)
        self._mind_offloads()
        carrying = [it.name for it in self.kernel.links.attached.values()]
        self.host.check_switches(carrying, self._places.addresses, self._places.families)
        return bool(lost)

    def trouble(self) -> str | None:
        """What keeps packets of the services from being forwarded, as far as it can be seen at a glance."""
        if not self.running or not self.held.listeners:
            return None
        if not self.kernel.links.attached:
            return "no interface carries the XDP program: `fairlead show events` says which is missing"
        if lost := self.kernel.lost():
            return f"the XDP program of {', '.join(lost)} has gone"
        return self.host.unforwarded([it.name for it in self.kernel.links.attached.values()], self._places.families)

    def _mind_offloads(self) -> None:
        """Have the program finish checksums where some are not, and know where it runs in generic mode."""
        attached = self.kernel.links.attached
        ports = self.kernel.maps["generic_ports"]
        generic = {u32(index) for index, it in attached.items() if it.mode == GENERIC}
        present = set(ports.keys())
        ports.delete_many(present - generic)
        ports.put_many(dict.fromkeys(generic - present, u32(1)))
        if not self._unfinished and any(offloads.leaves_checksums(it.name, it.mode) for it in attached.values()):
            self._unfinished = True
            self._replace_program()
            self._bind()

    def _keep_sources(self) -> None:
        """Let fullnat send from the addresses that the routes to its servers have."""
        held = self.held
        tables = {it.spec.table for it in held.services.values() if it.spec.forwarding is Forwarding.FULLNAT}
        numbers = {number for digest in tables if digest in held.tables for number in held.tables[digest].members}
        snat: tuple[IPAddress, ...] = ()
        if numbers:
            snat = self.host.snat(held.servers_by_id[number].spec.endpoint.address for number in numbers)
        if tables and set(snat) != set(held.snat):
            held.snat = snat[: abi.SNAT_MAX]
            deque(self.refresh_near(), maxlen=0)
            held.write_settings()
            held.flush()

    # Ending

    def let_go(self) -> None:
        """Leave everything in the kernel."""
        self._unbind()
        self.kernel.let_go()
        self.resolver.close()
        self.held = self._nothing(self.host)
        self._places, self._sought = Places(), None

    def remove(self) -> None:
        """Leave nothing in the kernel."""
        self._unbind()
        if self.running or self.kernel.root.is_dir():
            self.kernel.remove()
        self.resolver.close()
        self.held = self._nothing(self.host)
        self._places, self._sought = Places(), None


def _copy_rows(before: BpfMap, after: BpfMap) -> None:
    rows = before.first_rows(before.max_entries)
    width = len(rows) // before.max_entries
    empty = bytes(width)
    used = {
        u32(index): row
        for index in range(before.max_entries)
        if (row := rows[index * width : (index + 1) * width]) != empty
    }
    after.put_many(used)
