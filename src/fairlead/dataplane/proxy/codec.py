# SPDX-License-Identifier: Apache-2.0
"""Between the model and the bodies of control messages (everything behind ``fl_header``).

Invariant: pure functions of bytes, ids and specs; ids come from the caller.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from fairlead.dataplane.proxy import abi
from fairlead.dataplane.proxy.listeners import Port
from fairlead.errors import ContractViolation, DataPlaneError
from fairlead.model.net import AddressRange, Endpoint, IPAddress, Protocol
from fairlead.model.service import Engine, Forwarding, Persistence, ProxyHeader, Scheduler
from fairlead.model.state import FlowTreatment, ServerSpec, ServiceMode, ServiceSpec, TableSpec
from fairlead.model.views import FlowView

_NO_HEADER = (0, 0, 0)
_H = abi.HEADER.size
_V4_MAPPED = bytes(10) + b"\xff\xff"
_SCHEDULERS = (
    Scheduler.MAGLEV,
    Scheduler.RR,
    Scheduler.WRR,
    Scheduler.LC,
    Scheduler.WLC,
    Scheduler.SH,
    Scheduler.RANDOM,
)
_HEADERS = (ProxyHeader.NONE, ProxyHeader.V1, ProxyHeader.V2)
_TREATMENTS = {
    FlowTreatment.KEEP: 0,
    FlowTreatment.RESET: abi.SERVER_RESET,
    FlowTreatment.UNPIN: abi.SERVER_UNPIN,
}
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP}
_PROTOCOL_NUMBERS = {protocol: number for number, protocol in _PROTOCOLS.items()}
_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a worker is. ``attached`` and ``draining`` are its state, ``build`` the version it was built from."""

    abi: int
    pid: int
    slot: int
    attached: bool
    draining: bool
    flows: int
    build: str


@dataclass(frozen=True, slots=True)
class Done:
    """How a request ended: ``error`` is 0 or an errno value."""

    error: int
    cursor: int
    message: str


@dataclass(frozen=True, slots=True)
class TableHeld:
    """A table as a worker's dump shows it; ``content`` is a hash of the slots it holds."""

    id: int
    digest: str
    content: int


@dataclass(frozen=True, slots=True)
class ServiceHeld:
    """A service as a worker's dump shows it; its spec's ``table`` is left None, ``table`` is the id."""

    id: int
    table: int
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class ListenHeld:
    """One port of a listener; ``service`` is an id."""

    service: int
    port: Port


def text(raw: bytes) -> str:
    """A NUL-padded C string."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def encode_id(number: int) -> bytes:
    """``fl_id`` of a server, a table or a service."""
    return abi.ID.pack(*_NO_HEADER, number, 0)[_H:]


def encode_attach(slot: int) -> bytes:
    """``fl_attach``."""
    return abi.ATTACH.pack(*_NO_HEADER, slot, 0)[_H:]


def encode_drain(deadline_s: float) -> bytes:
    """``fl_drain``; the deadline is capped at what 32 bits of milliseconds hold (49 days)."""
    return abi.DRAIN.pack(*_NO_HEADER, min(max(round(deadline_s * 1000), 0), _U32), 0)[_H:]


def encode_server(number: int, spec: ServerSpec) -> bytes:
    """``fl_server``.

    Raises:
        DataPlaneError: The key is too long for the worker.
    """
    flags = _TREATMENTS[spec.flows]
    address = _address(spec.endpoint)
    key = _name(spec.key, abi.KEY_MAX)
    return abi.SERVER.pack(*_NO_HEADER, number, spec.weight, spec.max_connections, flags, *address, key)[_H:]


def decode_server(record: bytes) -> tuple[int, ServerSpec]:
    """Id and spec out of a dumped FL_SERVER_PUT."""
    _, _, _, number, weight, limit, flags, ip, port, family, _, key = abi.SERVER.unpack(record)
    flows = {number: treatment for treatment, number in _TREATMENTS.items()}[flags]
    return number, ServerSpec(text(key), Endpoint(_ip(ip, family), port), weight, limit, flows)


def encode_table(number: int, digest: str, spec: TableSpec, slots: array[int], ids: Sequence[int]) -> bytes:
    """``fl_table`` with its members and slots; a member that no slot leads to gets no new flows.

    Args:
        number: The table's id.
        digest: 32 hexadecimal digits.
        spec: The recipe.
        slots: Indexes into ``spec.members``.
        ids: Server ids of ``spec.members``, in order.

    Raises:
        DataPlaneError: The digest is not one, or there are more members than a worker takes.
        ContractViolation: There are not as many slots as the recipe says.
    """
    if len(ids) > abi.MAX_MEMBERS:
        raise DataPlaneError(f"a pool has {len(ids)} servers; the proxy data plane takes at most {abi.MAX_MEMBERS}")
    if slots.typecode != "H" or len(slots) != spec.size:
        raise ContractViolation(f"table {digest} was built with {len(slots)} slots instead of {spec.size}")
    try:
        raw = bytes.fromhex(digest)
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise DataPlaneError(f"{digest!r} is not the digest of a table: 32 hexadecimal digits")
    head = abi.TABLE.pack(*_NO_HEADER, number, len(slots), len(ids), 0, raw, 0)
    return b"".join((head[_H:], array("I", ids).tobytes(), slots.tobytes()))


def decode_table(record: bytes) -> TableHeld:
    """A dumped FL_TABLE_PUT."""
    _, _, _, number, _, _, _, digest, content = abi.TABLE.unpack(record)
    return TableHeld(number, digest.hex(), content)


def encode_service(number: int, table: int, spec: ServiceSpec) -> bytes:
    """``fl_service`` with its ranges.

    Raises:
        DataPlaneError: The spec asks for what this worker cannot do.
    """
    if spec.forwarding is not Forwarding.PROXY:
        raise DataPlaneError(f"service {spec.name}: the proxy data plane cannot do forwarding {spec.forwarding}")
    ranges = spec.allowed or ()
    if len(ranges) > abi.MAX_RANGES:
        raise DataPlaneError(
            f"service {spec.name}: allow and deny make {len(ranges)} address ranges; "
            f"the proxy takes at most {abi.MAX_RANGES}"
        )
    persistence = spec.persistence or Persistence(0, 0, 0)
    persist_ms = min(max(round(persistence.timeout_s * 1000), 1), _U32) if spec.persistence else 0
    head = abi.SERVICE.pack(
        *_NO_HEADER,
        number,
        table,
        _SCHEDULERS.index(spec.scheduler),
        spec.mode,
        _PROTOCOL_NUMBERS[spec.protocol],
        0,
        _flags(spec),
        spec.idle_timeout_ms,
        spec.connect_timeout_ms,
        spec.half_close_timeout_ms,
        spec.retries,
        persist_ms,
        persistence.prefix_v4,
        persistence.prefix_v6,
        _HEADERS.index(spec.send_proxy),
        0,
        spec.max_connections,
        spec.connections_per_source,
        spec.new_per_source,
        len(ranges),
        spec.queue,
        spec.queue_timeout_ms,
        spec.source_prefix_v4,
        spec.source_prefix_v6,
        0,
        0,
        spec.seed,
        _name(spec.name, abi.NAME_MAX),
        _name(spec.pool, abi.NAME_MAX),
    )
    pairs = (abi.RANGE.pack(it.low.to_bytes(16, "big"), it.high.to_bytes(16, "big")) for it in ranges)
    return b"".join((head[_H:], *pairs))


def _flags(spec: ServiceSpec) -> int:
    flags = 0 if spec.allowed is None else abi.SERVICE_ACL
    if spec.accept_proxy:
        flags |= abi.SERVICE_ACCEPT_PROXY
    return flags | abi.SERVICE_TRANSPARENT if spec.transparent else flags


def decode_service(record: bytes) -> ServiceHeld:
    """A dumped FL_SERVICE_PUT. What the worker does not know (the engine's name) has its default."""
    (
        *_,
        number,
        table,
        scheduler,
        mode,
        protocol,
        _,
        flags,
        idle_ms,
        connect_ms,
        half_close_ms,
        retries,
        persist_ms,
        persist_v4,
        persist_v6,
        send_proxy,
        _,
        max_connections,
        connections_per_source,
        new_per_source,
        ranges,
        queue,
        queue_ms,
        source_v4,
        source_v6,
        _,
        _,
        seed,
        name,
        pool,
    ) = abi.SERVICE.unpack(record)
    allowed = None
    if flags & abi.SERVICE_ACL:
        pairs = (abi.RANGE.unpack(record, abi.SERVICE.size + abi.RANGE.size * i) for i in range(ranges))
        allowed = tuple(AddressRange(int.from_bytes(low, "big"), int.from_bytes(high, "big")) for low, high in pairs)
    spec = ServiceSpec(
        name=text(name),
        protocol=_PROTOCOLS[protocol],
        forwarding=Forwarding.PROXY,
        engine=Engine.AUTO,
        scheduler=_SCHEDULERS[scheduler],
        mode=ServiceMode(mode),
        table=None,
        seed=seed,
        idle_timeout_ms=idle_ms,
        connect_timeout_ms=connect_ms,
        half_close_timeout_ms=half_close_ms,
        retries=retries,
        persistence=Persistence(persist_ms / 1000, persist_v4, persist_v6) if persist_ms else None,
        max_connections=max_connections,
        connections_per_source=connections_per_source,
        new_per_source=new_per_source,
        queue=queue,
        queue_timeout_ms=queue_ms,
        source_prefix_v4=source_v4,
        source_prefix_v6=source_v6,
        allowed=allowed,
        transparent=bool(flags & abi.SERVICE_TRANSPARENT),
        accept_proxy=bool(flags & abi.SERVICE_ACCEPT_PROXY),
        send_proxy=_HEADERS[send_proxy],
        pool=text(pool),
    )
    return ServiceHeld(number, table, spec)


def encode_listen(service: int, port: Port) -> bytes:
    """``fl_listen`` of one port."""
    return abi.LISTEN.pack(*_NO_HEADER, service, _PROTOCOL_NUMBERS[port.protocol], *_address(port.endpoint), 0)[_H:]


def decode_listen(record: bytes) -> ListenHeld:
    """A dumped FL_LISTEN_PUT. Workers of ABI 1, which knew TCP alone, leave the protocol 0."""
    _, _, _, service, protocol, ip, port, family, _, _ = abi.LISTEN.unpack(record)
    return ListenHeld(service, Port(_PROTOCOLS.get(protocol, Protocol.TCP), Endpoint(_ip(ip, family), port)))


def encode_flows(cursor: int, limit: int, service: int, server: int) -> bytes:
    """``fl_flows``; a service or server of 0 is any."""
    return abi.FLOWS.pack(*_NO_HEADER, cursor, limit, service, server)[_H:]


def decode_flow(record: bytes, worker: int, service: str, server: str) -> FlowView:
    """An FL_FLOW record, seen by the worker of slot ``worker``; the names are those of ``flow_ids``."""
    (*_, c_ip, c_port, c_family, _, v_ip, v_port, v_family, _, state, age_ms, idle_ms, _, bytes_in, bytes_out) = (
        abi.FLOW.unpack(record)
    )
    return FlowView(
        service=service,
        server=server,
        client=str(Endpoint(_ip(c_ip, c_family), c_port)),
        vip=str(Endpoint(_ip(v_ip, v_family), v_port)),
        state=abi.FlowState(state).name.lower(),
        age_s=age_ms / 1000,
        idle_s=idle_ms / 1000,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        worker=worker,
    )


def flow_ids(record: bytes) -> tuple[int, int]:
    """Service id and server id of an FL_FLOW record."""
    _, _, _, service, server, *_ = abi.FLOW.unpack(record)
    return service, server


def decode_hello(record: bytes) -> Hello:
    """An ``fl_hello`` record."""
    _, _, _, version, pid, slot, attached, draining, flows, build = abi.HELLO.unpack(record)
    return Hello(version, pid, slot, bool(attached), bool(draining), flows, text(build))


def decode_done(record: bytes) -> Done:
    """An ``fl_done``."""
    _, _, _, error, cursor, message = abi.DONE.unpack(record)
    return Done(error, cursor, text(message))


def _name(value: str, room: int) -> bytes:
    raw = value.encode()
    if len(raw) >= room:
        raise DataPlaneError(f"the name {value!r} has {len(raw)} bytes; the proxy takes at most {room - 1}")
    return raw


def _address(endpoint: Endpoint) -> tuple[bytes, int, int, int]:
    packed = endpoint.address.packed
    return (packed if len(packed) == 16 else _V4_MAPPED + packed), endpoint.port, endpoint.address.version, 0


def _ip(raw: bytes, family: int) -> IPAddress:
    return IPv4Address(raw[12:]) if family == 4 else IPv6Address(raw)
