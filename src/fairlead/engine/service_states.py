# SPDX-License-Identifier: Apache-2.0
"""Tells when a service goes down, is degraded, or is up again, and what that means for new flows (F40)."""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.engine.events import Events
from fairlead.model.configuration import Configuration
from fairlead.model.shared import differing
from fairlead.model.state import ServiceMode
from fairlead.policy.derive import Derived
from fairlead.policy.status import ServiceStatus

_NEW_FLOWS = {ServiceMode.REJECT: "new flows are refused", ServiceMode.DROP: "new flows are dropped"}


class ServiceStates:
    """The states of all services, as last told."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._told: Mapping[str, ServiceStatus] = {}

    def look(self, configuration: Configuration, derived: Derived) -> None:
        """Tell what has changed; a service that is up from the beginning is not news."""
        for name in sorted(differing(self._told, derived.services)):
            status, told = derived.services.get(name), self._told.get(name)
            if status is not None and status.state != (told.state if told is not None else "up"):
                pool = configuration.pools[configuration.services[name].pool]
                self._events.record(
                    f"service_{status.state}",
                    name,
                    f"live weight {status.live_weight}, quorum {pool.quorum}: {_new_flows(status, pool.quorum)}",
                    level="info" if status.state == "up" else "warning",
                )
        self._told = derived.services


def _new_flows(status: ServiceStatus, quorum: int) -> str:
    if status.mode in _NEW_FLOWS:
        return _NEW_FLOWS[status.mode]
    if status.live_weight < max(quorum, 1):
        return "new flows go to every server, whatever its probes say (when_all_down: use_all)"
    return "new flows go to the servers that are up"
