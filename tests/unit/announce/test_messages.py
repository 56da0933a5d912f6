# SPDX-License-Identifier: Apache-2.0
"""What agent and process tell each other arrives as it was."""

from __future__ import annotations

import itertools
import json
from ipaddress import ip_address

import pytest

from fairlead.announce.base import (
    Event,
    InstanceReport,
    Report,
    Stance,
    VipReport,
    Wanted,
    decode,
    encode,
    read_report,
    read_wanted,
)
from fairlead.announce.l2 import BURST_S, REFRESH_S, Announcements
from fairlead.model.vip import Vip, VrrpChecksum, VrrpInstance

WANTED = Wanted(
    vips=(Vip(ip_address("192.0.2.10"), 24, "eth0", "pair"), Vip(ip_address("2001:db8::1"), 64, "eth1", "static")),
    instances=(
        VrrpInstance(
            "pair", "eth0", 51, 2, 200, 300, True, 5.0, (ip_address("192.0.2.1"),), ("web",), VrrpChecksum.RFC9568, "g"
        ),
    ),
    stances={"pair": Stance(ready=True, degraded="service web is down")},
)


def test_a_wish() -> None:
    kind, body = decode(encode("set", WANTED))
    assert kind == "set"
    assert read_wanted(body) == WANTED


def test_a_report() -> None:
    report = Report(
        (VipReport("192.0.2.10/24", True, 1.5, False, 0, 1, ("02:00:00:00:00:01",), None),),
        (InstanceReport("pair", "active", 100, "timeout", 2.5, "192.0.2.1", False, 2, 30, 4, 0),),
        {"eth0": {"ttl": 3}},
    )
    assert read_report(decode(encode("report", report))[1]) == report


def test_an_event() -> None:
    event = Event("vip_conflict", "192.0.2.10/24", "answered by ...", "error", 0.5)
    assert Event(**decode(encode("event", event))[1]) == event


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type": 1, "body": 2}', b"\xff"])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(data)


def test_a_wish_of_another_form_is_refused_as_a_whole() -> None:
    body = json.loads(encode("set", WANTED))["body"]
    for part in body:
        with pytest.raises((KeyError, TypeError, ValueError)):
            read_wanted({key: value for key, value in body.items() if key != part})
    with pytest.raises(TypeError):
        read_wanted({**body, "vips": [{**body["vips"][0], "colour": "red"}]})


def test_f03_a_burst_then_another_then_once_a_minute() -> None:
    announcements = Announcements()
    announcements.burst(100.0)
    sent: list[tuple[float, int]] = []
    while (due := announcements.next_at()) is not None and due < 400.0:
        assert announcements.take(due - 0.001) is None
        turn = announcements.take(due)
        assert turn is not None
        sent.append((round(due - 100.0, 2), turn % 2))
    moments = [moment for moment, _ in sent]
    assert moments[: len(BURST_S)] == list(BURST_S)
    assert sum(moment <= 1.5 for moment in moments) == 5
    assert sum(5.0 <= moment <= 6.5 for moment in moments) == 5
    assert max(b - a for a, b in itertools.pairwise(moments)) <= REFRESH_S
    assert {form for moment, form in sent if moment < 1.5} == {0, 1}
