# SPDX-License-Identifier: Apache-2.0
"""The whole configuration, validated: what ``config/`` returns and the engine starts from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fairlead.model.pool import Pool
from fairlead.model.service import VirtualService
from fairlead.model.vip import Vip, VrrpInstance
from fairlead.model.xdp import XdpSettings

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Where the API listens; None means the default socket, and no TCP listener."""

    socket: str | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """One validated configuration.

    Attributes:
        services: By name.
        pools: By name.
        vips: Addresses this node may own, in the order of the file.
        vrrp: Instances by name.
        workers: Proxy worker processes; 0 means one per CPU this process may use.
        hash_seed: 16 bytes shared by nodes that share VIPs, or None: derived from each service's address.
        digest: Hex digest of the text it was read from, shown in the status (F50).
    """

    services: Mapping[str, VirtualService] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    vips: tuple[Vip, ...] = ()
    vrrp: Mapping[str, VrrpInstance] = field(default_factory=dict)
    xdp: XdpSettings = field(default_factory=XdpSettings)
    api: ApiSettings = ApiSettings()
    workers: int = 0
    hash_seed: bytes | None = None
    digest: str = ""

    def keeping(self, old: Configuration) -> Configuration:
        """The same, with the pools and services of ``old`` in place of equal ones, so that what is other is soon found.

        It compares everything, which takes a fifth of a second with 100,000 servers.
        """
        return replace(self, services=_kept(self.services, old.services), pools=_kept(self.pools, old.pools))

    def only(self, names: Collection[str]) -> Configuration:
        """Some of its pools, and no services."""
        return Configuration(pools={name: self.pools[name] for name in names if name in self.pools})

    def pools_unlike(self, other: Configuration) -> frozenset[str]:
        """Names of pools that are not the same object in both, or whose services are not."""
        services = unlike(self.services, other.services)
        either = (it for name in services for it in (self.services.get(name), other.services.get(name)))
        return unlike(self.pools, other.pools) | {it.pool for it in either if it is not None}


def _kept(new: Mapping[str, V], old: Mapping[str, V]) -> dict[str, V]:
    return {name: old[name] if old.get(name) == value else value for name, value in new.items()}


def unlike(one: Mapping[str, object], other: Mapping[str, object]) -> frozenset[str]:
    """Names that do not stand for the same object in both."""
    return frozenset(name for name in one.keys() | other.keys() if one.get(name) is not other.get(name))
