# SPDX-License-Identifier: Apache-2.0
"""Warnings of certificates: in time, once, and again when another one ends."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from fairlead.engine import logs
from fairlead.engine.certificates import CertificateWatch
from fairlead.engine.events import Events
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import HealthMonitor, MonitorType, TlsSettings
from support.models import PASSED, endpoint

DAY = 86400.0
NOW = 1_800_000_000.0


def target(warning_s: float) -> ProbeTarget:
    return ProbeTarget(
        endpoint("10.0.0.1:443"), HealthMonitor(MonitorType.TLS, tls=TlsSettings(expiry_warning_s=warning_s))
    )


@pytest.fixture
def events() -> Events:
    logs.configure(timestamps=False, out=io.StringIO())
    return Events(lambda: NOW)


def test_an_end_that_is_near_is_told_once(events: Events) -> None:
    watch = CertificateWatch(events, lambda: NOW)
    for days in (20, 13, 13, 20, 13):
        watch.look(target(14 * DAY), replace(PASSED, certificate_until=NOW + days * DAY))
    told = events.after(0, 10)
    assert [(event.kind, event.subject) for event in told] == [("certificate_expires", "10.0.0.1:443")] * 2
    assert "2027-01-28 08:00 UTC" in told[0].message


@pytest.mark.parametrize(("warning_s", "until"), [(0.0, NOW), (14 * DAY, None)])
def test_nothing_is_told_unasked_or_unseen(events: Events, warning_s: float, until: float | None) -> None:
    CertificateWatch(events, lambda: NOW).look(target(warning_s), replace(PASSED, certificate_until=until))
    assert events.after(0, 10) == ()
