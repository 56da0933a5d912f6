# SPDX-License-Identifier: Apache-2.0
"""Which VIP answers for what a nat server sends: decided from the configuration where that is possible.

A reply is turned back by nothing but the server's address, port and protocol, so that a node that never saw the flow
can do it. Where several VIPs or ports lead to one server, the flow table decides (``AMBIGUOUS``); while flows live
that are older than that, what it does not know is taken to come from the VIP of before (``GUESS``).

Invariant: an entry is never taken away while its server is there, for flows outlive their service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
        return abi.ReplyRecord.LAYOUT.pack(self.vip, self.port, self.flags, self.service, self.server, 0)


class Replies:
    """All entries."""

    def __init__(self) -> None:
        self.entries: dict[ReplyKey, Entry] = {}
        self.touched: dict[ReplyKey, Entry] = {}  # that changed since the owner of this object last looked
        self._claims: dict[ReplyKey, set[Claim]] = {}
        self._ports: dict[tuple[bytes, int], set[int]] = {}
        self._wide: set[tuple[bytes, int]] = set()  # of these, those with port 0
        self.turned: set[int] = set()  # servers that have become ambiguous, or are so no more, since then
        self._ambiguous: dict[int, set[ReplyKey]] = {}
        self._guesses: set[ReplyKey] = set()

    def adopt(self, key: ReplyKey, entry: Entry) -> None:
        """Take an entry over as it stands in the kernel."""
        self._note_port(key)
        self._set(key, entry, None)

    def _note_port(self, key: ReplyKey) -> None:
        place = key.address, key.protocol
        ports = self._ports.get(place)
        if ports is None:
            self._ports[place] = {key.port}
        else:
            ports.add(key.port)
        if not key.port:
            self._wide.add(place)

    def change(
        self, before: Iterable[tuple[ReplyKey, Claim]], after: Iterable[tuple[ReplyKey, Claim]], until: float
    ) -> None:
        """The claims of one service change; flows of before may live ``until`` then."""
        keys = set()
        for key, claim in before:
            self._claims.get(key, set()).discard(claim)
            keys.add(key)
        for key, claim in after:
            claims = self._claims.get(key)
            if claims is None:
                self._claims[key] = {claim}
                self._note_port(key)
            else:
                claims.add(claim)
            keys.add(key)
        for key in sorted(keys):
            self._decide(key, until)
            if key.port == 0:
                for port in self._ports.get((key.address, key.protocol), set()) - {0}:
                    self._decide(key._replace(port=port), until)

    def settle(self, now: float) -> None:
        """Guesses whose time has passed become what the configuration says."""
        for key in list(self._guesses):
            entry, claims = self.entries[key], self._claims.get(key)
            if entry.guess_until is not None and entry.guess_until <= now and claims:
                self._set(key, self._plain(key, claims), entry)

    def forget_server(self, server: int) -> list[ReplyKey]:
        """The server has gone, and its flows; the keys that went with it."""
        gone = [key for key, entry in self.entries.items() if entry.server == server and not self._claims.get(key)]
        for key in gone:
            del self.entries[key]
            self.touched.pop(key, None)
            self._guesses.discard(key)
            self._claims.pop(key, None)
            ports = self._ports.get((key.address, key.protocol))
            if ports is not None:
                ports.discard(key.port)
            if not key.port:
                self._wide.discard((key.address, key.protocol))
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

    def _plain(self, key: ReplyKey, claims: set[Claim]) -> Entry:
        base = min(claims)
        several = base.is_one_of_many or (len(claims) > 1 and len({(claim.vip, claim.port) for claim in claims}) > 1)
        flags = abi.REPLY_AMBIGUOUS if several or (self._wide and self._is_shadowed(key)) else 0
        return Entry(base.vip, base.port, flags, base.service, base.server)

    def _is_shadowed(self, key: ReplyKey) -> bool:
        """Whether a service with a range of ports, which uses the server's any port, covers this one, too."""
        if not key.port or (key.address, key.protocol) not in self._wide:
            return False
        wide = self._claims.get(key._replace(port=0), ())
        return any(claim.first <= key.port <= claim.last for claim in wide)

    def _decide(self, key: ReplyKey, until: float) -> None:
        claims = self._claims.get(key)
        if not claims:
            return
        plain, held = self._plain(key, claims), self.entries.get(key)
        if (
            held is None
            or (not held.flags and not plain.flags and (held.vip, held.port) == (plain.vip, plain.port))
            or (held.flags & plain.flags == abi.REPLY_AMBIGUOUS and not held.flags & abi.REPLY_GUESS)
        ):
            self._set(key, plain, held)
        else:
            # Flows from before are known in one direction only, or were of another VIP.
            last = max(until, held.guess_until or until)
            flags = abi.REPLY_AMBIGUOUS | abi.REPLY_GUESS
            self._set(key, held._replace(flags=flags, guess_until=last), held)

    def _set(self, key: ReplyKey, entry: Entry, held: Entry | None) -> None:
        if held != entry:
            self.entries[key] = self.touched[key] = entry
            if entry.guess_until is not None:
                self._guesses.add(key)
            elif held is not None:
                self._guesses.discard(key)
        if entry.flags & abi.REPLY_AMBIGUOUS or self._ambiguous:
            self._mark(key, entry)

    def _mark(self, key: ReplyKey, entry: Entry) -> None:
        unclear = bool(entry.flags & abi.REPLY_AMBIGUOUS)
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
    members: Sequence[tuple[int, bytes, int]],
    listens: Iterable[tuple[IPAddress, int, int]],
    protocol: int,
) -> frozenset[tuple[ReplyKey, Claim]]:
    """The claims of a nat service.

    Args:
        service: Its id.
        members: Id, packed address and port of its servers.
        listens: Address, first and last port where it is offered.
        protocol: Number of the protocol.
    """
    found = []
    for address, first, last in listens:
        vip, single = abi.packed(address), first == last
        four = abi.is_v4(vip)
        for server, at, port in members:
            if abi.is_v4(at) is four:
                key = ReplyKey(at, port or (first if single else 0), protocol)
                found.append((key, Claim(service, server, vip, first if single or port else 0, first, last)))
    return frozenset(found)


def reply_place(key: ReplyKey) -> tuple[str, bytes]:
    """Map and key of an entry."""
    family, raw = records.packed_key(*key)
    return "replies4" if family == 4 else "replies6", raw


def reply_entry(name: str, raw_key: bytes, raw: bytes, guess_until: float) -> tuple[ReplyKey, Entry]:
    """The opposite of ``reply_place`` and ``Entry.record``."""
    key = (abi.ListenKey4 if name == "replies4" else abi.ListenKey6).unpack(raw_key)
    record = abi.ReplyRecord.unpack(raw)
    until = guess_until if record.flags & abi.REPLY_GUESS else None
    where = ReplyKey(abi.packed(records.address_of(key.addr)), key.port, key.proto)
    return where, Entry(record.vip, record.port, record.flags, record.service, record.server, until)
