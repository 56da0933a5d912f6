# SPDX-License-Identifier: Apache-2.0
"""The whole configuration, validated: what ``config/`` returns and the engine starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.model.pool import Pool
from fairlead.model.service import VirtualService
from fairlead.model.vip import Vip, VrrpInstance
from fairlead.model.xdp import XdpSettings


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
