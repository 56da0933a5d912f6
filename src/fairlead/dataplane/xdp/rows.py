# SPDX-License-Identifier: Apache-2.0
"""Counters of servers and services, made out of the kernel's rows when somebody asks for one.

They are read every second, and few of 100,000 are ever looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping

from fairlead.dataplane.base import ServerCounters, ServiceCounters
from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.held import ServerHeld, ServiceHeld
from fairlead.dataplane.xdp.libbpf.binding import possible_cpus


class Traffic:
    """Rows of a per-CPU array of ``abi.Traffic``.

    Args:
        raw: The first rows of the array.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._cpus = possible_cpus()
        self._width = len(abi.Traffic.LAYOUT.members)
        self._row = struct.Struct(f"={self._width * self._cpus}Q")

    def __getitem__(self, number: int) -> abi.Traffic:
        """One row, the CPUs' figures added up; what was not read yet has none."""
        at = number * self._row.size
        if at + self._row.size > len(self._raw):
            return abi.Traffic()
        figures = self._row.unpack_from(self._raw, at)
        return abi.Traffic(*(sum(figures[member :: self._width]) for member in range(self._width)))


class ServerRows(Mapping[str, ServerCounters]):
    """By key; a key that had several endpoints has the figures of all of them."""

    def __init__(
        self, same_key: Mapping[str, Collection[ServerHeld]], traffic: Traffic, live: Mapping[int, int]
    ) -> None:
        self._same_key, self._traffic, self._live = same_key, traffic, live

    def __getitem__(self, key: str) -> ServerCounters:
        numbers = [it.number for it in tuple(self._same_key[key])]  # another thread may be changing it
        rows = [self._traffic[number] for number in numbers]
        return ServerCounters(
            active=sum(self._live.get(number, 0) for number in numbers),
            connections=sum(row.connections for row in rows),
            bytes_in=sum(row.bytes_in for row in rows),
            bytes_out=sum(row.bytes_out for row in rows),
        )

    def __contains__(self, key: object) -> bool:
        return key in self._same_key

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._same_key))

    def __len__(self) -> int:
        return len(self._same_key)


class ServiceRows(Mapping[str, ServiceCounters]):
    """By name."""

    def __init__(self, services: Mapping[str, ServiceHeld], traffic: Traffic, live: Mapping[int, int]) -> None:
        self._services, self._traffic, self._live = services, traffic, live

    def __getitem__(self, name: str) -> ServiceCounters:
        number = self._services[name].number
        row = self._traffic[number]
        return ServiceCounters(self._live.get(number, 0), row.connections, row.bytes_in, row.bytes_out)

    def __contains__(self, name: object) -> bool:
        return name in self._services

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._services))

    def __len__(self) -> int:
        return len(self._services)
