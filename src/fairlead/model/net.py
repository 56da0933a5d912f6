# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports and prefixes as the rest of the model uses them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network


class Protocol(StrEnum):
    """Transport protocol of a VirtualService."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port; port 0 means "the port the client used"."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class Listen:
    """Where a VirtualService is offered: a Vip and an inclusive range of ports.

    ``first == last`` for a single port; ``*`` in the configuration is 1 to 65535.
    """

    address: IPAddress
    first: int
    last: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        if (self.first, self.last) == (1, 65535):
            return f"{host}:*"
        return f"{host}:{self.first}" if self.first == self.last else f"{host}:{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, order=True)
class AddressRange:
    """An inclusive range of addresses of one family, as 128-bit integers (IPv4 is v4-mapped)."""

    low: int
    high: int
