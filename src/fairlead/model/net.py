# SPDX-License-Identifier: Apache-2.0
"""Addresses, ports and prefixes as the rest of the model uses them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

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

    def __hash__(self) -> int:
        return hash((int(self.address), self.port))  # that of an address is made of its digits in hex

    def __str__(self) -> str:
        host = written(self.address)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def written(address: IPAddress) -> str:
    """What ``str`` says of an address; a hundred thousand are written at a time, and it takes four times as long."""
    if isinstance(address, IPv4Address):
        number = int(address)
        return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return str(address)


def read_endpoint(text: str) -> Endpoint:
    """ADDRESS:PORT or [V6]:PORT.

    Raises:
        ValueError: It is neither.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError(f"{text!r} is not ADDRESS:PORT or [V6]:PORT")
    bare = host.removeprefix("[").removesuffix("]")
    address = ip_address(bare)
    if (address.version == 6) is not (host == f"[{bare}]"):
        raise ValueError(f"{text!r} is not ADDRESS:PORT or [V6]:PORT")
    return Endpoint(address, int(port))


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


@dataclass(frozen=True, slots=True)
class FlowQuestion:
    """A packet that a client sends to a VIP."""

    protocol: Protocol
    client: Endpoint
    vip: Endpoint


@dataclass(frozen=True, slots=True, order=True)
class AddressRange:
    """An inclusive range of addresses of one family, as 128-bit integers (IPv4 is v4-mapped)."""

    low: int
    high: int
