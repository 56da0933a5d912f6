# SPDX-License-Identifier: Apache-2.0
"""Addresses that a node may own, and the VRRP instances that decide about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import IPAddress

STATIC = "static"  # owner of a Vip that this node holds as long as the daemon runs


class VrrpChecksum(StrEnum):
    """Which checksum VRRP version 3 over IPv4 carries; ``auto``: the one that the others send."""

    AUTO = "auto"
    RFC5798 = "rfc5798"
    RFC9568 = "rfc9568"


@dataclass(frozen=True, slots=True)
class Vip:
    """An address with the prefix length of its network, the interface that carries it, and who decides about it."""

    address: IPAddress
    prefix: int
    interface: str
    owner: str

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class VrrpInstance:
    """One virtual router (RFC 9568).

    Attributes:
        interval_cs: Advertisement_Interval, centiseconds.
        preempt_delay_s: Unused when ``preempt`` is False.
        peers: Unicast peers; empty: multicast.
        follow: Names of the services whose health the ownership follows.
        sync: Instances of one group move together.
    """

    name: str
    interface: str
    vrid: int
    version: int = 3
    priority: int = 100
    interval_cs: int = 100
    preempt: bool = False
    preempt_delay_s: float = 0.0
    peers: tuple[IPAddress, ...] = ()
    follow: tuple[str, ...] = ()
    checksum: VrrpChecksum = VrrpChecksum.AUTO
    sync: str | None = None
