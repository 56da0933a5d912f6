# SPDX-License-Identifier: Apache-2.0
"""Whether this node should rather leave its VIPs to another one. Pure; with hysteresis.

A node that is less fit does not withdraw: it is *degraded*, which others outbid and which still serves when nobody
else can, so that two ailing nodes never leave an address without an owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairlead.model.configuration import Configuration
from fairlead.policy.status import ServiceStatus

FAULT_S = 3.0  # a data plane that is repaired within this was never at fault
RECOVERY_S = 5.0  # well for so long before the node is fit again,
MAX_RECOVERY_S = 80.0  # doubled with each fall, up to this,
STEADY_S = 600.0  # until the last fall is so long ago


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The state of one decision; all moments are monotonic seconds.

    Attributes:
        degraded: Why, or None.
        ill_since: Since when there has been a fault, or None.
        well_since: Since when there has been none while still degraded, or None.
        falls: How often it became degraded without a steady time between.
        fell_at: When that was last.
    """

    degraded: str | None = None
    ill_since: float | None = None
    well_since: float | None = None
    falls: int = 0
    fell_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong now. ``settled``: whoever found it has already waited to be sure."""

    why: str
    settled: bool


def fault(
    follow: Iterable[str], services: Mapping[str, ServiceStatus], configuration: Configuration, dataplane: str | None
) -> Fault | None:
    """What is wrong with the services that an instance follows, or with the data plane; None: nothing.

    Args:
        follow: Names of the services.
        services: How they are.
        configuration: Where their quorum stands.
        dataplane: What its self-test found.
    """
    for name in follow:
        status = services.get(name)
        if status is None:
            continue
        quorum = configuration.pools[configuration.services[name].pool].quorum
        if status.state == "down" or status.live_weight < quorum:
            return Fault(f"service {name} is down", settled=True)
    return None if dataplane is None else Fault(f"data plane: {dataplane}", settled=False)


def step(state: Eligibility, found: Fault | None, now: float) -> Eligibility:
    """The next state, given what is wrong at ``now``."""
    if found is not None:
        ill_since = now if state.ill_since is None else state.ill_since
        degraded, falls, fell_at = state.degraded, state.falls, state.fell_at
        if degraded is not None:
            degraded = found.why
        elif found.settled or now - ill_since >= FAULT_S:
            falls = 1 if now - fell_at > STEADY_S else falls + 1
            degraded, fell_at = found.why, now
        return Eligibility(degraded, ill_since, None, falls, fell_at)
    if state.degraded is None:
        return Eligibility(None, None, None, state.falls, state.fell_at)
    well_since = now if state.well_since is None else state.well_since
    if now - well_since >= _recovery_s(state.falls):
        return Eligibility(None, None, None, state.falls, state.fell_at)
    return Eligibility(state.degraded, None, well_since, state.falls, state.fell_at)


def next_at(state: Eligibility) -> float | None:
    """When ``step`` would decide otherwise though nothing changed, or None."""
    if state.degraded is None:
        return None if state.ill_since is None else state.ill_since + FAULT_S
    return None if state.well_since is None else state.well_since + _recovery_s(state.falls)


def _recovery_s(falls: int) -> float:
    return float(min(RECOVERY_S * 2 ** min(falls - 1, 10), MAX_RECOVERY_S))


def contested(answers: int, *, held: bool) -> bool:
    """Whether a VIP has one owner too many: so many others answer for it, and this node may hold it as well."""
    return answers >= (1 if held else 2)
