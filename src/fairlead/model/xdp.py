# SPDX-License-Identifier: Apache-2.0
"""Settings of the XDP data plane."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import IPAddress


class XdpMode(StrEnum):
    """Where the XDP program is attached."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class XdpSettings:
    """The section ``xdp`` of the configuration; None means ``auto``.

    Attributes:
        interfaces: Names of those that carry the program.
        flow_table: Entries of the flow table.
        tunnel_source: Outer source address of tunnels.
        snat: Addresses that fullnat sends from.
    """

    interfaces: tuple[str, ...] | None = None
    mode: XdpMode = XdpMode.AUTO
    flow_table: int = 1_000_000
    tunnel_source: IPAddress | None = None
    snat: tuple[IPAddress, ...] | None = None
