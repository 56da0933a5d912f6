# SPDX-License-Identifier: Apache-2.0
"""Warns of certificates that end soon, each once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from fairlead.engine.events import Events
from fairlead.model.health import ProbeResult, ProbeTarget


class CertificateWatch:
    """Looks at what probes over TLS saw.

    Args:
        events: Where warnings are told.
        wall_clock: Seconds since the Unix epoch.
    """

    def __init__(self, events: Events, wall_clock: Callable[[], float]) -> None:
        self._events = events
        self._wall_clock = wall_clock
        self._told: dict[ProbeTarget, float] = {}

    def look(self, target: ProbeTarget, result: ProbeResult) -> None:
        """Warn when the certificate that ``result`` shows ends within the time that the monitor sets."""
        until, tls = result.certificate_until, target.monitor.tls
        if until is None or tls is None or not tls.expiry_warning_s:
            return
        if until - self._wall_clock() > tls.expiry_warning_s:
            self._told.pop(target, None)
        elif self._told.get(target) != until:
            self._told[target] = until
            when = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
            self._events.record(
                "certificate_expires", str(target.endpoint), f"its certificate ends at {when}", level="warning"
            )
