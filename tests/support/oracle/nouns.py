# SPDX-License-Identifier: Apache-2.0
"""What the oracle knows and says."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from fairlead.dataplane.xdp.abi import Counter
from support.packets import ACK, FIN, RST, SYN, TCP, Address

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Server:
    address: Address
    port: int
    reset: bool = False
    ambiguous: bool = False
    source: Address | None = None
    spread: int = 0
    generation: int = 1


@dataclass(slots=True)
class Service:
    forwarding: str  # nat | fullnat | dsr | tunnel
    members: tuple[int, ...]
    slots: tuple[int, ...]
    seed: bytes
    choice: str = "flow"  # flow | source | turn
    mode: str = "forward"  # forward | reject | drop
    allowed: tuple[IPv4Network | IPv6Network, ...] | None = None
    table: int = 0
    turn: int = 0


@dataclass(slots=True)
class Reply:
    vip: Address
    port: int
    service: int
    server: int
    ambiguous: bool = False
    guess: bool = False
    direct: bool = False


Tuple = tuple[Address, Address, int, int, int]


@dataclass(slots=True)
class Flow:
    kind: str  # server | client | direct
    service: int
    server: int
    generation: int
    table: int
    new: bool  # one packet seen, or SYNs alone
    near: tuple[Address, int] | None = None
    far: tuple[Address, int] | None = None


@dataclass(slots=True)
class Parsed:
    """A packet taken apart; ``raw`` is the IP packet within its own length, ``l4`` an offset into it."""

    family: int
    source: Address
    destination: Address
    protocol: int
    raw: bytes
    l4: int
    ttl: int
    tos: int
    df: bool
    identity: int
    fragment: str  # whole | first | later
    sport: int = 0
    dport: int = 0
    flags: int = 0

    def key(self) -> Tuple:
        return (self.source, self.destination, self.sport, self.dport, self.protocol)

    def is_syn(self) -> bool:
        return self.protocol == TCP and self.flags & (SYN | ACK | RST | FIN) == SYN

    def is_rst(self) -> bool:
        return self.protocol == TCP and self.flags & RST != 0


@dataclass(slots=True)
class Route:
    kind: str
    service: int
    server: int
    forwarding: str
    source: tuple[Address, int]
    destination: tuple[Address, int]
    hop: Address


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a packet; ``counter`` None: it was forwarded."""

    verdict: int
    frame: bytes
    counter: Counter | None


class Verdict(Exception):
    """The fate of a packet that is not forwarded."""

    def __init__(self, verdict: int, counter: Counter) -> None:
        super().__init__(counter.name)
        self.verdict, self.counter = verdict, counter


def dropped(counter: Counter) -> Verdict:
    return Verdict(DROP, counter)


def passed(counter: Counter) -> Verdict:
    return Verdict(PASS, counter)


class Refused(Exception):
    """A new flow of a service that rejects, or a flow that is reset."""


class Missed(Exception):
    """Nothing is known."""
