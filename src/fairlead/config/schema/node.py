# SPDX-License-Identifier: Apache-2.0
"""Schema of what concerns the node: ``vips``, ``vrrp``, and the keys beside the named sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict

from fairlead.config.findings import Refused, shown
from fairlead.config.forms import (
    ADDRESS,
    ADDRESS_AND_PORT,
    BOOLEAN,
    FILE,
    INTERFACE,
    NAME_FORM,
    PRINTABLE,
    SOCKET,
    choice,
    duration,
    integer,
    nullable,
    one_or_many,
    word_or,
)
from fairlead.config.schema.base import Part, key, limited, required
from fairlead.model.net import Endpoint, IPAddress
from fairlead.model.vip import VrrpChecksum
from fairlead.model.xdp import XdpMode

MAX_WORKERS = 32


class Vip(Part):
    """An address this node may own."""

    interface: Annotated[str, INTERFACE] = required("Interface that carries it.")
    owner: Annotated[str, NAME_FORM] = required("Who decides about it: the name of a `vrrp` entry, or `static`.")


class Preempt(Part):
    """Whether a node of higher priority takes over from a live one of lower priority."""

    delay: Annotated[float, duration(0, 86400)] = key(0.0, "Wait this long before taking over.")


def _preempt(value: object) -> object:
    if isinstance(value, dict):
        return value
    if value not in ("true", "false"):
        raise Refused(f"{shown(value)} is not allowed here; write `true`, `false`, or a mapping with `delay`")
    return Preempt() if value == "true" else None


class Vrrp(Part):
    """One VRRP instance (RFC 9568)."""

    interface: Annotated[str, INTERFACE] = required("Interface that advertisements use.")
    vrid: Annotated[int, integer(1, 255)] = required("Virtual router id, the same on all nodes of the group.")
    version: Annotated[int, integer(2, 3)] = key(3, "Version of the protocol; 2 is IPv4 only.")
    priority: Annotated[int, integer(1, 255)] = key(100, "Higher wins; 255 is for the owner of the address.")
    advert_interval: Annotated[float, duration(0.01, 40.95)] = key(1.0, "From one advertisement to the next.")
    preempt: Annotated[Preempt | None, BeforeValidator(_preempt)] = key(
        None,
        "Take over from a live node of lower priority: `true`, `false`, or `{delay: 30s}`.",
        shown="false",
    )
    peers: Annotated[list[Annotated[IPAddress, ADDRESS]], limited(64, "peers")] = key(
        (), "Unicast peers; empty: multicast."
    )
    follow: Annotated[list[Annotated[str, NAME_FORM]], limited(1024, "services")] = key(
        (), "Services whose health the ownership follows."
    )
    checksum: Annotated[VrrpChecksum, choice(VrrpChecksum)] = key(
        VrrpChecksum.AUTO, "Checksum of version 3 over IPv4; `auto`: the form that the others send."
    )
    sync: Annotated[str | None, nullable(NAME_FORM)] = key(None, "Group of instances that move together.", shown="none")


def _auto_list(value: object) -> object:
    if value == "auto":
        return None
    if value is None:
        raise Refused("an empty value is not allowed here; write `auto`, or a list")
    return one_or_many(value)


class Xdp(Part):
    """The data plane in the kernel."""

    interfaces: Annotated[list[Annotated[str, INTERFACE]] | None, BeforeValidator(_auto_list)] = key(
        None, "Interfaces; `auto`: those that carry the VIPs and the routes to the servers.", shown="auto"
    )
    mode: Annotated[XdpMode, choice(XdpMode)] = key(
        XdpMode.AUTO, "`auto`: native where the driver can, else generic with a warning."
    )
    flow_table: Annotated[int, integer(1024, 100_000_000)] = key(1_000_000, "Entries, shared by all CPUs.")
    tunnel_source: Annotated[IPAddress | None, word_or("auto", None, ADDRESS)] = key(
        None, "Outer source address of `tunnel`; `auto`: the address of the outgoing interface."
    )
    snat: Annotated[list[Annotated[IPAddress, ADDRESS]] | None, BeforeValidator(_auto_list)] = key(
        None, "Addresses that `fullnat` sends from; `auto`: the address of the outgoing interface.", shown="auto"
    )


class Bgp(Part):
    """Routes to the VIPs; its keys are not defined yet."""

    model_config = ConfigDict(extra="allow")


class Api(Part):
    """Where the API is served."""

    socket: Annotated[str | None, nullable(SOCKET)] = key(
        None, "Unix socket.", shown="/run/fairlead/api.sock for root, else $XDG_RUNTIME_DIR/fairlead/api.sock"
    )
    listen: Annotated[Endpoint | None, nullable(ADDRESS_AND_PORT)] = key(None, "TCP address; never open by default.")
    token_file: Annotated[str | None, nullable(FILE)] = key(None, "File of the token that TCP clients show.")


class Proxy(Part):
    """The workers of `forwarding: proxy`."""

    workers: Annotated[int, word_or("auto", 0, integer(1, MAX_WORKERS))] = key(
        0, "Worker processes; `auto`: one per CPU that the program may use."
    )


class HealthSettings(Part):
    """What all health checks share; how servers are checked stands in `pools.NAME.health`."""

    allow_exec: Annotated[bool, BOOLEAN] = key(
        False, "Allow monitors of type `exec`: who may write the configuration may then run programs as this one."
    )


class Settings(Part):
    """The keys beside the named sections."""

    xdp: Xdp = key(Xdp(), "The data plane in the kernel.")
    bgp: Bgp = key(Bgp(), "Routes to the VIPs.")
    api: Api = key(Api(), "Where the API is served.")
    proxy: Proxy = key(Proxy(), "The workers of `forwarding: proxy`.")
    health: HealthSettings = key(HealthSettings(), "What all health checks share.")
    hash_seed: Annotated[str | None, nullable(PRINTABLE)] = key(
        None,
        "Nodes that share VIPs share it, so that they choose the same server for the same flow.",
        shown="derived from each service's first address",
    )
