# SPDX-License-Identifier: Apache-2.0
"""Schema of the whole file: which sections there are, and the model of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairlead.config.schema.base import Part
from fairlead.config.schema.node import Settings, Vip, Vrrp
from fairlead.config.schema.pool import Pool
from fairlead.config.schema.service import Service

NAMED: dict[str, type[Part]] = {"services": Service, "pools": Pool, "vips": Vip, "vrrp": Vrrp}
SECTIONS = (*NAMED, *Settings.model_fields)


@dataclass(slots=True)
class Draft:
    """What passed the schema, by name; things that did not are missing."""

    services: dict[str, Service] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    vips: dict[str, Vip] = field(default_factory=dict)
    vrrp: dict[str, Vrrp] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
