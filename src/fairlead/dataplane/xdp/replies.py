# SPDX-License-Identifier: Apache-2.0
"""Which VIP answers for what a nat server sends: decided from the configuration where that is possible.

A reply is turned back by nothing but the server's address, port and protocol, so that a node that never saw the flow
can do it. Where several VIPs or ports lead to one server, the flow table decides (``AMBIGUOUS``); while flows live
that are older than that, what it does not know is taken to come from the VIP of before (``GUESS``).

Invariant: an entry is never taken away while its server is there, for flows outlive their service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from fairlead.dataplane.xdp import abi, records
from fairlead.model.net import IPAddress


class ReplyKey(NamedTuple):
    """A server as its replies show it; port 0: any that has no entry of its own."""

    address: bytes
    port: int
    protocol: int


class Claim(NamedTuple):
    """A way by which clients get to a server.

    Attributes:
        service: Its id.
        server: Its id.
        vip: Packed.
        port: Of the VIP; 0: the one that the server answers from.
        first, last: Ports of the VIP.
    """

    service: int
    server: int
    vip: bytes
    port: int
    first: int
    last: int

    @property
    def is_one_of_many(self) -> bool:
        """Whether several ports of the VIP lead to one port of the server."""
        return self.port != 0 and self.first != self.last


class Entry(NamedTuple):
    """What stands in the map, and until when it may be a guess (monotonic seconds)."""

    vip: bytes
    port: int
    flags: int
    service: int
    server: int
    guess_until: float | None = None

    def record(self) -> bytes:
        """The value of the map."""
        return abi.ReplyRecord.bytes_of(self.vip, self.port, self.flags, self.service, self.server, 0)


class Replies:
    """All entries."""

    def __init__(self) -> None:
        self.entries: dict[ReplyKey, Entry] = {}
        self.touched: set[ReplyKey] = set()  # whose entry changed since the owner of this object last looked
        self._claims: dict[ReplyKey, set[Claim]] = {}
        self._ports: dict[tuple[bytes, int], set[int]] = {}
        self.turned: set[int] = set()  # servers that have become ambiguous, or are so no more, since then
        self._ambiguous: dict[int, set[ReplyKey]] = {}
        self._guesses: set[ReplyKey] = set()

    def adopt(self, key: ReplyKey, entry: Entry) -> None:
        """Take an entry over as it stands in the kernel."""
        self._set(key, entry)

    def change(
        self, before: Iterable[tuple[ReplyKey, Claim]], after: Iterable[tuple[ReplyKey, Claim]], until: float
    ) -> None:
        """The claims of one service change; flows of before may live ``until`` then."""
        keys = set()
        for key, claim in before:
            self._claims.get(key, set()).discard(claim)
            keys.add(key)
        for key, claim in after:
            self._claims.setdefault(key, set()).add(claim)
            self._ports.setdefault((key.address, key.protocol), set()).add(key.port)
            keys.add(key)
        for key in sorted(keys):
            self._decide(key, until)
            if key.port == 0:
                for port in self._ports.get((key.address, key.protocol), set()) - {0}:
                    self._decide(key._replace(port=port), until)

    def settle(self, now: float) -> None:
        """Guesses whose time has passed become what the configuration says."""
        for key in list(self._guesses):
            entry = self.entries[key]
            if entry.guess_until is not None and entry.guess_until <= now and self._claims.get(key):
                self._set(key, self._plain(key))

    def forget_server(self, server: int) -> list[ReplyKey]:
        """The server has gone, and its flows; the keys that went with it."""
        gone = [key for key, entry in self.entries.items() if entry.server == server and not self._claims.get(key)]
        for key in gone:
            del self.entries[key]
            self._guesses.discard(key)
            self._claims.pop(key, None)
            ports = self._ports.get((key.address, key.protocol))
            if ports is not None:
                ports.discard(key.port)
        self._ambiguous.pop(server, None)
        return gone

    def is_ambiguous(self, server: int) -> bool:
        """Whether flows to this server are to be stored in both directions."""
        return bool(self._ambiguous.get(server))

    def services(self) -> set[int]:
        """Ids that entries hold."""
        return {entry.service for entry in self.entries.values()}

    def servers_of(self, key: ReplyKey) -> set[int]:
        """Ids of the servers that an entry concerns."""
        found = {claim.server for claim in self._claims.get(key, ())}
        if key in self.entries:
            found.add(self.entries[key].server)
        return found

    def unclear(self) -> Iterator[ReplyKey]:
        """Entries that the flow table decides."""
        return (key for key, entry in self.entries.items() if entry.flags & abi.REPLY_AMBIGUOUS)

    def _plain(self, key: ReplyKey) -> Entry:
        claims = self._claims[key]
        base = min(claims)
        several = base.is_one_of_many or (len(claims) > 1 and len({(claim.vip, claim.port) for claim in claims}) > 1)
        flags = abi.REPLY_AMBIGUOUS if several or self._is_shadowed(key) else 0
        return Entry(base.vip, base.port, flags, base.service, base.server)

    def _is_shadowed(self, key: ReplyKey) -> bool:
        """Whether a service with a range of ports, which uses the server's any port, covers this one, too."""
        if not key.port or 0 not in self._ports[key.address, key.protocol]:
            return False
        wide = self._claims.get(key._replace(port=0), ())
        return any(claim.first <= key.port <= claim.last for claim in wide)

    def _decide(self, key: ReplyKey, until: float) -> None:
        if not self._claims.get(key):
            return
        plain, held = self._plain(key), self.entries.get(key)
        if (
            held is None
            or (not held.flags and not plain.flags and (held.vip, held.port) == (plain.vip, plain.port))
            or (held.flags & plain.flags == abi.REPLY_AMBIGUOUS and not held.flags & abi.REPLY_GUESS)
        ):
            self._set(key, plain)
        else:
            # Flows from before are known in one direction only, or were of another VIP.
            last = max(until, held.guess_until or until)
            flags = abi.REPLY_AMBIGUOUS | abi.REPLY_GUESS
            self._set(key, held._replace(flags=flags, guess_until=last))

    def _set(self, key: ReplyKey, entry: Entry) -> None:
        if self.entries.get(key) != entry:
            self.entries[key] = entry
            (self._guesses.discard if entry.guess_until is None else self._guesses.add)(key)
            self._ports.setdefault((key.address, key.protocol), set()).add(key.port)
            self.touched.add(key)
        self._mark(key, entry)

    def _mark(self, key: ReplyKey, entry: Entry) -> None:
        unclear = bool(entry.flags & abi.REPLY_AMBIGUOUS)
        if not (unclear or self._ambiguous):
            return
        for server in self.servers_of(key):
            was = self.is_ambiguous(server)
            if unclear:
                self._ambiguous.setdefault(server, set()).add(key)
            elif server in self._ambiguous:
                self._ambiguous[server].discard(key)
            if self.is_ambiguous(server) is not was:
                self.turned.add(server)


def claims(
    service: int,
    members: Mapping[int, tuple[IPAddress, int]],
    listens: Iterable[tuple[IPAddress, int, int]],
    protocol: int,
) -> frozenset[tuple[ReplyKey, Claim]]:
    """The claims of a nat service.

    Args:
        service: Its id.
        members: Address and port of its servers, by id.
        listens: Address, first and last port where it is offered.
        protocol: Number of the protocol.
    """
    found = []
    packed = {server: (at.version, abi.packed(at), port) for server, (at, port) in members.items()}
    for address, first, last in listens:
        vip, family, single = abi.packed(address), address.version, first == last
        for server, (version, at, port) in packed.items():
            if version == family:
                key = ReplyKey(at, port or (first if single else 0), protocol)
                found.append((key, Claim(service, server, vip, first if single or port else 0, first, last)))
    return frozenset(found)


def reply_place(key: ReplyKey) -> tuple[str, bytes]:
    """Map and key of an entry."""
    family, raw = records.packed_key(key.address, key.port, key.protocol)
    return f"replies{family}", raw


def reply_entry(name: str, raw_key: bytes, raw: bytes, guess_until: float) -> tuple[ReplyKey, Entry]:
    """The opposite of ``reply_place`` and ``Entry.record``."""
    key = (abi.ListenKey4 if name == "replies4" else abi.ListenKey6).unpack(raw_key)
    record = abi.ReplyRecord.unpack(raw)
    until = guess_until if record.flags & abi.REPLY_GUESS else None
    where = ReplyKey(abi.packed(records.address_of(key.addr)), key.port, key.proto)
    return where, Entry(record.vip, record.port, record.flags, record.service, record.server, until)
