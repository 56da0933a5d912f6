# SPDX-License-Identifier: Apache-2.0
"""A bed for the XDP program: a network namespace with interfaces, routes and neighbours, and its maps to fill.

Nothing is sent: packets are given to the program by BPF_PROG_TEST_RUN, which sees the namespace's routing table.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import hashlib
import importlib.util
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.flows import FlowTable, Found
from fairlead.dataplane.xdp.kernel import MASKS
from fairlead.dataplane.xdp.layout import Record
from fairlead.dataplane.xdp.libbpf.hooks import XDP_NATIVE, Link
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.libbpf.programs import Run
from support.packets import Address

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "bpf"
LONG = abi.timeouts(100_000, 100_000, 100_000, 100_000)
SEED = bytes(range(16))
NEWNET = 0x40000000


@cache
def compiled(source: Path) -> Path:
    """The object of a BPF source; compiled once for all runs, until a source or the compiler changes."""
    spec = importlib.util.spec_from_file_location("bpf_build", ROOT / "bpf/build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    digest = hashlib.blake2b(" ".join(build.compiler()).encode(), digest_size=8)
    for part in sorted((*(ROOT / "bpf").glob("*.[ch]"), source)):
        digest.update(part.read_bytes())
    output = BUILT / digest.hexdigest()
    done = output / source.name.replace(".c", ".o")
    result: Path = done if done.exists() else build.compile_program(source, output)
    return result


def program_object() -> Path:
    """The compiled program under test."""
    return compiled(ROOT / "bpf/fairlead.bpf.c")


def settle_object() -> Path:
    """The compiled programs that mark strays."""
    return compiled(ROOT / "bpf/settle.bpf.c")


def bed_object() -> Path:
    """The compiled programs of the bed."""
    return compiled(ROOT / "tests/support/testbed.bpf.c")


@contextlib.contextmanager
def own_namespace() -> Iterator[None]:
    """This thread in a network namespace of its own, which ends with the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(before, NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(before)


def ip(*arguments: str) -> None:
    """Run the command ip."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of the bed."""

    name: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int = 1500


OUTSIDE = Port("out0", "02:00:00:00:0f:01", ("10.0.0.1/24", "2001:db8::1/64"))
INSIDE = Port("in0", "02:00:00:00:0f:02", ("10.0.1.1/24", "2001:db8:1::1/64"))
NARROW = Port("thin0", "02:00:00:00:0f:03", ("10.0.2.1/24", "2001:db8:2::1/64"), mtu=1400)
PORTS = (OUTSIDE, INSIDE, NARROW)
GATEWAY_MAC = "02:00:00:00:0c:01"
# Neighbours by address; the servers' MACs end in the last byte of the address.
NEIGHBOURS: Mapping[str, tuple[Port, str]] = {
    "10.0.0.254": (OUTSIDE, GATEWAY_MAC),
    "2001:db8::fe": (OUTSIDE, GATEWAY_MAC),
    "10.0.0.77": (OUTSIDE, "02:00:00:00:0a:77"),
    **{f"10.0.1.{n}": (INSIDE, f"02:00:00:00:0b:{n:02x}") for n in range(10, 20)},
    **{f"2001:db8:1::{n:x}": (INSIDE, f"02:00:00:00:0d:{n:02x}") for n in range(0x10, 0x20)},
    "10.0.1.254": (INSIDE, "02:00:00:00:0b:fe"),
    "10.0.2.10": (NARROW, "02:00:00:00:0e:10"),
    "2001:db8:2::10": (NARROW, "02:00:00:00:0e:16"),
}
# Everything else: by the gateways. 10.9.0.0/16 is behind a router on the inside.
ROUTES = (("0.0.0.0/0", "10.0.0.254"), ("::/0", "2001:db8::fe"), ("10.9.0.0/16", "10.0.1.254"))
UNREACHABLE = "10.8.0.0/16"  # blackholed
LOCAL = ("10.0.0.1", "10.0.1.1", "10.0.2.1", "2001:db8::1", "2001:db8:1::1", "2001:db8:2::1")


@dataclass(frozen=True, slots=True)
class Hop:
    """What the routing table of the bed says of an address."""

    port: Port
    mac: str | None  # None: the neighbour is not resolved
    gateway: bool


def hop_to(address: Address) -> Hop | str:
    """The bed's next hop, or ``"local"`` or ``"none"``: computed from the tables above, not from the kernel."""
    if str(address) in LOCAL:
        return "local"
    if address.is_multicast or address.is_loopback:
        return "none"
    if address in ip_network(UNREACHABLE):
        return "none"
    for port in PORTS:
        for own in port.addresses:
            net = ip_network(own, strict=False)
            if address == (net.broadcast_address if net.version == 4 else net.network_address):
                return "local"  # broadcast, or the routers' anycast address
            if address in net:
                known = NEIGHBOURS.get(str(address))
                return Hop(port, known[1] if known else None, gateway=False)
    best = max((ip_network(net), via) for net, via in ROUTES if address in ip_network(net))
    port, mac = NEIGHBOURS[best[1]]
    return Hop(port, mac, gateway=True)


def build_links(stub: LoadedObject) -> list[Link]:
    """Make the interfaces of the bed in the present namespace; the links keep them able to receive."""
    ip("link", "set", "lo", "up")
    for port in PORTS:
        ip("link", "add", port.name, "address", port.mac, "type", "veth", "peer", "name", f"{port.name}-peer")
        for name in (port.name, f"{port.name}-peer"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
            Path(f"/proc/sys/net/ipv6/conf/{name}/router_solicitations").write_text("0")
            ip("link", "set", name, "mtu", str(port.mtu), "up")
        for own in port.addresses:
            ip("addr", "add", own, "dev", port.name, *(["nodad"] if ":" in own else []))
    for address, (port, mac) in NEIGHBOURS.items():
        ip("neigh", "add", address, "lladdr", mac, "dev", port.name, "nud", "permanent")
    for net, via in ROUTES:
        ip("route", "add", net, "via", via)
    ip("route", "add", "blackhole", UNREACHABLE)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{name}").write_text("1")
    program = stub.programs["pass_all"]
    return [Link.attach(program, socket.if_nametoindex(port.name), XDP_NATIVE) for port in PORTS]


@dataclass
class Bed:
    """The loaded program with its maps; ids are the caller's."""

    loaded: LoadedObject
    cpu: int
    _units: int = 1

    def __post_init__(self) -> None:
        self.program = self.loaded.programs["fairlead"]
        self.maps = self.loaded.maps
        self._slots = self.maps["slots"].memory()
        self._near = self.maps["near"].memory()
        self._ports = {port.name: socket.if_nametoindex(port.name) for port in PORTS}
        self.settings()

    def settings(self, record: abi.Settings | None = None, *, snat: Sequence[str] = ()) -> None:
        """Set ``settings[0]``; the source ports of fullnat belong to one CPU unless told otherwise."""
        record = record or abi.Settings()
        addresses = tuple(ip_address(a) for a in snat)
        self.maps["settings"].put(_u32(0), record.with_snat(addresses))
        for address in addresses:
            self.mark(address, abi.NEAR_VIP)

    def mark(self, address: Address, bits: int) -> None:
        """Set bits of the address filter."""
        index = abi.near_index(abi.packed(address))
        self._near[index] |= bits

    def table(self, members: Sequence[int], slots: Sequence[int]) -> tuple[int, int]:
        """Write a slot table; its base and size."""
        block = abi.table_block(list(members), array.array("H", slots).tobytes())
        base = self._units
        self._slots[base * 8 : base * 8 + len(block)] = block
        self._units += len(block) // 8
        return base, len(slots)

    def server(
        self, number: int, endpoint: str, *, generation: int = 1, flags: int = 0, source: str = "", spread: int = 0
    ) -> None:
        """Put a server, ``ADDRESS:PORT``."""
        host, _, port = endpoint.rpartition(":")
        address = ip_address(host.strip("[]"))
        record = abi.ServerRecord(
            addr=abi.packed(address),
            port=int(port),
            generation=generation,
            family=address.version,
            flags=flags,
            source=abi.packed(ip_address(source)) if source else abi.NOWHERE,
            spread=spread.to_bytes(4, "big"),
        )
        self.maps["servers"].put(_u32(number), record.pack())

    def service(
        self,
        number: int,
        forwarding: abi.Forwarding,
        table: tuple[int, int] = (0, 0),
        *,
        choice: abi.Choice = abi.Choice.BY_FLOW,
        mode: abi.Mode = abi.Mode.FORWARD,
        access: int = 0,
        timeout: bytes = LONG,
        new_per_source: int = 0,
        seed: bytes = SEED,
        settled: bool = False,
    ) -> None:
        """Put a service."""
        record = abi.ServiceRecord(*table, forwarding, choice, mode, access, seed, timeout, new_per_source)
        self.maps["services"].put(_u32(number), abi.settled(record.pack(), on=settled))

    def listen(self, service: int, vip: str, protocol: int, first: int, last: int | None = None) -> None:
        """Offer a service at an address and a port, or a range of ports (0 to 65535: any)."""
        address = ip_address(vip)
        raw = abi.packed(address)
        self.maps["vips"].put(raw, _u32(1))
        self.mark(address, abi.NEAR_VIP)
        if last is None:
            if address.version == 4:
                key: Record = abi.ListenKey4(address.packed, first, protocol)
            else:
                key = abi.ListenKey6(raw, first, protocol)
            self.maps[f"listeners{address.version}"].put(key.pack(), _u32(service))
            return
        for start, bits in port_prefixes(first, last):
            self.maps["ranges"].put(abi.RangeKey(abi.ANY_PORT_BITS + bits, raw, protocol, start).pack(), _u32(service))

    def reply(self, endpoint: str, protocol: int, record: abi.ReplyRecord) -> None:
        """Let replies from ``endpoint`` be turned back as ``record`` says."""
        host, _, number = endpoint.rpartition(":")
        address = ip_address(host.strip("[]"))
        if address.version == 4:
            key: Record = abi.ListenKey4(address.packed, int(number), protocol)
        else:
            key = abi.ListenKey6(abi.packed(address), int(number), protocol)
        self.maps[f"replies{address.version}"].put(key.pack(), record.pack())
        self.mark(address, abi.NEAR_SERVER)

    def allow(self, number: int, prefix: str) -> None:
        """Add a prefix to an access list."""
        net = ip_network(prefix)
        bits = net.prefixlen + (96 if net.version == 4 else 0)
        key = abi.AccessKey(abi.ACCESS_LIST_BITS + bits, number.to_bytes(4, "big"), abi.packed(net.network_address))
        self.maps["access"].put(key.pack(), _u32(1))

    def generic(self, port: Port) -> None:
        """Let the program believe that this port carries it in generic mode."""
        self.maps["generic_ports"].put(_u32(self._ports[port.name]), _u32(1))

    def send(self, packet: bytes, port: Port = OUTSIDE) -> Run:
        """Give the program one packet."""
        return self.program.run(packet, ifindex=self._ports[port.name])

    def counters(self) -> dict[abi.Counter, int]:
        """The counters so far."""
        raw = self.maps["cpus"].get(_u32(0))
        assert raw is not None
        return abi.sum_counters(raw)

    def raw_counters(self) -> tuple[int, ...]:
        """The counters of the bed's CPU, by number."""
        raw = self.maps["cpus"].get(_u32(0))
        assert raw is not None
        return struct.unpack_from(f"<{len(abi.Counter)}Q", raw, self.cpu * abi.CPU_BYTES)

    def forget(self) -> None:
        """Forget all flows, fragments, counters and cursors."""
        for name in ("flows4", "flows6"):
            with self.maps[name].memory() as flows:
                flows[:] = bytes(len(flows))
        touched = self.maps["touched"]
        touched.put_many({_u32(index): bytes(8) for index in range(touched.max_entries)})
        self.clear("fragments", "sources")
        row = self.maps["cpus"].get(_u32(0))
        assert row is not None
        self.maps["cpus"].put(_u32(0), bytes(len(row)))
        for number in range(256):
            self.maps["turns"].put(_u32(number), bytes(8))

    def clear(self, *names: str) -> None:
        """Empty hash maps."""
        for name in names:
            for key in list(self.maps[name].keys()):
                self.maps[name].delete(key)

    def close(self) -> None:
        """Unload."""
        self._slots.close()
        self._near.close()
        self.loaded.close()


def port_prefixes(first: int, last: int) -> list[tuple[int, int]]:
    """A range of ports as (start, prefix length of 16 bits)."""
    found = []
    while first <= last:
        size = first & -first or 65536
        while size > last - first + 1:
            size //= 2
        found.append((first, 17 - size.bit_length()))
        first += size
    return found


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def sized(entries: int) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of maps, and constants, for flow tables of ``entries`` (a power of two)."""
    blocks = entries // abi.PLACES4
    sizes = {"flows4": blocks, "flows6": entries, "touched": max(1, blocks // abi.BLOCKS_PER_WORD)}
    return sizes, {mask: sizes[name] - 1 for mask, name in MASKS.items()}


def flows_of(maps: Mapping[str, BpfMap]) -> list[Found]:
    """What is in the flow tables."""
    table = FlowTable(maps)
    try:
        return [found for _, found in table.walk(0)]
    finally:
        table.close()


@contextlib.contextmanager
def open_bed(*, entries: int = 65536, words: int = 0, multi_buffer: bool = False, **constants: int) -> Iterator[Bed]:
    """A bed in the present namespace, on one CPU.

    Args:
        entries: Of the flow tables.
        words: Of ``touched``; 0: as many as the agent gives it.
        multi_buffer: What is longer than a page comes in several buffers; else it is cut off.
        constants: Of the program.
    """
    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    os.sched_setaffinity(0, {cpu})
    sizes, masks = sized(entries)
    if words:
        sizes["touched"], masks["touched_mask"] = words, words - 1
    try:
        loaded = LoadedObject(
            program_object(),
            constants={"fragment_ttl": 100_000, "multi_buffer": int(multi_buffer), **masks, **constants},
            max_entries=sizes,
            multi_buffer=multi_buffer,
        )
        bed = Bed(loaded, cpu)
        try:
            yield bed
        finally:
            bed.close()
    finally:
        os.sched_setaffinity(0, allowed)
