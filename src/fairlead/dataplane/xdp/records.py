# SPDX-License-Identifier: Apache-2.0
"""Specs as the program's maps hold them, and as the agent's notes remember them. Pure; ids come from the caller."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from operator import attrgetter
from typing import Any

from fairlead.dataplane.xdp import abi
from fairlead.errors import DataPlaneError
from fairlead.model.net import AddressRange, Endpoint, IPAddress, Listen, Protocol, written
from fairlead.model.service import Engine, Forwarding, Persistence, ProxyHeader, Scheduler
from fairlead.model.state import FlowTreatment, Listener, ServerSpec, ServiceMode, ServiceSpec

FORWARDINGS = {
    Forwarding.NAT: abi.Forwarding.NAT,
    Forwarding.FULLNAT: abi.Forwarding.FULLNAT,
    Forwarding.DSR: abi.Forwarding.DSR,
    Forwarding.TUNNEL: abi.Forwarding.TUNNEL,
}
CHOICES = {
    Scheduler.MAGLEV: abi.Choice.BY_FLOW,
    Scheduler.SH: abi.Choice.BY_SOURCE,
    Scheduler.RR: abi.Choice.BY_TURN,
    Scheduler.WRR: abi.Choice.BY_TURN,
    Scheduler.RANDOM: abi.Choice.BY_CHANCE,
}
MODES = {
    ServiceMode.FORWARD: abi.Mode.FORWARD,
    ServiceMode.REJECT: abi.Mode.REJECT,
    ServiceMode.DROP: abi.Mode.DROP,
}
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17}
# Seconds that a flow of one packet, one that was closed, and one that was reset may be silent, at most.
SYN_S, FIN_S, RST_S = 30, 120, 10
EPOCH_S = 8  # how often the entry of a flow is looked at, at least
EPOCHS = 4  # that a flow must be allowed to be idle for
FOREVER = (1 << 31) - 1  # jiffies; times are compared as signed differences
ANY_PORT = (1, 65535)  # what `*` means
_MAPPED = 0xFFFF << 32
_NO_SPREAD = bytes(4)
_text = json.encoder.encode_basestring_ascii
_NOTED = [it.name for it in fields(ServiceSpec) if it.name != "allowed"]
_noted = attrgetter(*_NOTED)


def u32(number: int) -> bytes:
    """A key of the program's arrays."""
    return number.to_bytes(4, "little")


def refuse_unsupported(spec: ServiceSpec) -> None:
    """Raise DataPlaneError when packets cannot be forwarded so."""
    if spec.forwarding not in FORWARDINGS:
        raise DataPlaneError(f"service {spec.name}: forwarding {spec.forwarding} is no work for XDP")
    if spec.scheduler not in CHOICES:
        raise DataPlaneError(
            f"service {spec.name}: scheduler {spec.scheduler} needs the number of open connections, which packets in "
            "one direction do not tell; use maglev, wrr, rr, sh or random"
        )


@cache
def timeouts(idle_timeout_ms: int, hertz: int) -> bytes:
    """How long flows may be silent, by state; few services differ in it."""
    idle = idle_timeout_ms * hertz // 1000 if idle_timeout_ms else FOREVER
    idle = max(1, min(idle, FOREVER))
    return abi.timeouts(*(min(idle, limit) for limit in (SYN_S * hertz, FOREVER, FIN_S * hertz, RST_S * hertz)))


def may_settle(spec: ServiceSpec, hertz: int) -> bool:
    """Whether packets of its established flows may go by their slots alone (settle.py).

    They are chosen for by the hash, nobody is refused after the table was asked, no port is taken from an entry, and
    an entry that is made younger once in an epoch does not grow too old.
    """
    return (
        spec.protocol is Protocol.TCP
        and CHOICES.get(spec.scheduler) is abi.Choice.BY_FLOW
        and spec.forwarding in {Forwarding.NAT, Forwarding.DSR, Forwarding.TUNNEL}
        and spec.mode is ServiceMode.FORWARD
        and spec.allowed is None
        and (not spec.idle_timeout_ms or spec.idle_timeout_ms * hertz >= EPOCHS * 1000 << epoch_shift(hertz))
    )


def epoch_shift(hertz: int) -> int:
    """Of ``touch_shift``: the power of two of jiffies that is nearest to eight seconds."""
    return round(math.log2(EPOCH_S * hertz))


def service_record(spec: ServiceSpec, table: tuple[int, int], access: int, hertz: int) -> bytes:
    """Value of ``services``; ``table``: base and size of its slot table."""
    return abi.ServiceRecord.LAYOUT.pack(
        *table,
        FORWARDINGS[spec.forwarding],
        CHOICES[spec.scheduler],
        MODES[spec.mode],
        access,
        spec.seed,
        timeouts(spec.idle_timeout_ms, hertz),
        spec.new_per_source,
    )


def server_record(address: bytes, port: int, generation: int, flags: int, source: IPAddress | None) -> bytes:
    """Value of ``servers``; the address is packed."""
    outer = abi.packed(source) if source is not None else abi.NOWHERE
    family = 4 if abi.is_v4(address) else 6
    return abi.ServerRecord.LAYOUT.pack(address, port, generation, family, flags, outer, _NO_SPREAD)


def listen_key(address: IPAddress, port: int, protocol: int) -> tuple[int, bytes]:
    """Family and key of ``listeners`` and ``replies``."""
    return packed_key(abi.packed(address), port, protocol)


def packed_key(address: bytes, port: int, protocol: int) -> tuple[int, bytes]:
    """The same of a packed address."""
    if abi.is_v4(address):
        return 4, abi.ListenKey4.LAYOUT.pack(address[12:], port, protocol)
    return 6, abi.ListenKey6.LAYOUT.pack(address, port, protocol)


def listener_keys(listener: Listener) -> list[tuple[str, bytes]]:
    """Map and key of every entry that a listener takes."""
    listen, protocol = listener.listen, PROTOCOLS[listener.protocol]
    if listen.first == listen.last:
        family, key = listen_key(listen.address, listen.first, protocol)
        return [(f"listeners{family}", key)]
    raw = abi.packed(listen.address)
    prefixes = [(0, 0)] if (listen.first, listen.last) == ANY_PORT else list(port_prefixes(listen.first, listen.last))
    return [("ranges", abi.RangeKey(abi.ANY_PORT_BITS + bits, raw, protocol, start).pack()) for start, bits in prefixes]


def port_prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A range of ports as prefixes of a 16-bit number: start and length."""
    while first <= last:
        size = first & -first or 65536
        while size > last - first + 1:
            size //= 2
        yield first, 17 - size.bit_length()
        first += size


def access_keys(number: int, allowed: tuple[AddressRange, ...]) -> list[bytes]:
    """The entries of access list ``number``."""
    return [
        abi.AccessKey(abi.ACCESS_LIST_BITS + bits, number.to_bytes(4, "big"), start.to_bytes(16, "big")).pack()
        for part in allowed
        for start, bits in _address_prefixes(part)
    ]


def _address_prefixes(part: AddressRange) -> Iterator[tuple[int, int]]:
    low, high = part.low, part.high
    while low <= high:
        size = low & -low or 1 << 128
        while size > high - low + 1:
            size //= 2
        yield low, 129 - size.bit_length()
        low += size


def access_digest(allowed: tuple[AddressRange, ...] | None) -> str | None:
    """What a note keeps of an access list."""
    if allowed is None:
        return None
    text = ",".join(f"{part.low:x}-{part.high:x}" for part in allowed)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def access_ranges(keys: list[bytes]) -> tuple[AddressRange, ...]:
    """The ranges that entries of one access list stand for; neighbours of one family become one."""
    parts = []
    for key in keys:
        bits = int.from_bytes(key[:4], "little") - abi.ACCESS_LIST_BITS
        low = int.from_bytes(key[8:24], "big")
        parts.append((low, low + (1 << 128 - bits) - 1))
    merged: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if merged and low == merged[-1][1] + 1 and _family(low) == _family(merged[-1][0]):
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(AddressRange(*part) for part in merged)


def _family(address: int) -> int:
    return 4 if address >> 32 == 0xFFFF else 6


# Notes


def server_note(spec: ServerSpec, generation: int, *, gone: bool) -> str:
    """What is to be remembered of a server beside its record, as JSON."""
    at, limit = spec.endpoint, spec.max_connections
    return (
        f'{{"s":[{_text(spec.key)},"{written(at.address)}",{at.port},{spec.weight},{limit},{spec.flows:d},'
        f"{generation},{gone:d}]}}"
    )


def read_server_note(note: list[object]) -> tuple[ServerSpec, int, bool]:
    """Spec, generation and whether it was deleted.

    Raises:
        ValueError, TypeError: It is none.
    """
    key, address, port, weight, limit, flows, generation, gone = note
    endpoint = Endpoint(ip_address(str(address)), _int(port))
    spec = ServerSpec(str(key), endpoint, _int(weight), _int(limit), FlowTreatment(_int(flows)))
    return spec, _int(generation), bool(gone)


def service_note(spec: ServiceSpec, access: int, *, gone: bool) -> dict[str, object]:
    """What is to be remembered of a service beside its record; who may connect stands in ``access``."""
    values: dict[str, object] = dict(zip(_NOTED, _noted(spec), strict=True))
    values["seed"] = spec.seed.hex()
    if (kept := spec.persistence) is not None:
        values["persistence"] = [kept.timeout_s, kept.prefix_v4, kept.prefix_v6]
    return {"spec": values, "access": access, "allowed": access_digest(spec.allowed), "gone": gone}


def read_service_note(note: dict[str, Any]) -> tuple[ServiceSpec, int, str | None, bool]:
    """Spec (without who may connect), access list, its digest, and whether it was deleted.

    Raises:
        KeyError, ValueError, TypeError: It is none.
    """
    values = {name: _READERS.get(name, _same)(value) for name, value in note["spec"].items()}
    return ServiceSpec(**values), int(note["access"]), note["allowed"], bool(note["gone"])


def _same(value: Any) -> Any:
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "protocol": Protocol,
    "forwarding": Forwarding,
    "engine": Engine,
    "scheduler": Scheduler,
    "mode": ServiceMode,
    "seed": bytes.fromhex,
    "send_proxy": ProxyHeader,
    "persistence": lambda value: Persistence(*value) if value else None,
}


def listener_note(listener: Listener) -> bytes:
    """Key of ``names_listener``."""
    listen = listener.listen
    ports = listen.first.to_bytes(2, "big") + listen.last.to_bytes(2, "big")
    return abi.packed(listen.address) + bytes((PROTOCOLS[listener.protocol], 0, 0, 0)) + ports


def read_listener_note(key: bytes, service: str) -> Listener:
    """The listener that a key of ``names_listener`` stands for."""
    protocol = next(name for name, number in PROTOCOLS.items() if number == key[16])
    first, last = int.from_bytes(key[20:22], "big"), int.from_bytes(key[22:24], "big")
    return Listener(service, protocol, Listen(abi.unpacked(key[:16]), first, last))


def address_of(raw: bytes) -> IPv4Address | IPv6Address:
    """An address of 4 or 16 bytes."""
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a number")
    return value


def table_note(digest: str, size: int, members: int, check: bytes) -> bytes:
    """Value of ``names_table``."""
    return (bytes.fromhex(digest) + size.to_bytes(4, "little") + members.to_bytes(4, "little") + check).ljust(64, b"\0")


def read_table_note(raw: bytes) -> tuple[str, int, int, bytes]:
    """Digest, size, number of members, and check of the block."""
    return raw[:16].hex(), int.from_bytes(raw[16:20], "little"), int.from_bytes(raw[20:24], "little"), raw[24:40]


def table_units(size: int, members: int) -> int:
    """How much of the slot memory a table takes."""
    return (size * 2 + abi.SLOT_UNIT - 1) // abi.SLOT_UNIT + (members * 4 + abi.SLOT_UNIT - 1) // abi.SLOT_UNIT


def block_digest(block: bytes | memoryview) -> bytes:
    """16 bytes by which damage of a table in memory is seen."""
    return hashlib.blake2b(block, digest_size=16).digest()
