# SPDX-License-Identifier: Apache-2.0
"""The rise/fall filter, result by result."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.model.health import HealthState, ProbeResult, ProbeTarget, Verdict
from fairlead.model.net import Protocol
from fairlead.model.pool import HealthMonitor
from fairlead.model.reasons import DownReason
from fairlead.model.service import Forwarding, Passage
from fairlead.policy.health import Transition, combine, step, target_key
from support.models import DOWN, PASSED, REFUSED, TCP_MONITOR, UP, endpoint, server

LOCAL = ProbeResult(False, DownReason.LOCAL_ERROR, "no source port left", 0.0)
TIMEOUT = ProbeResult(False, DownReason.TIMEOUT, "no answer in 1 s", 1.0)


def run(results: str, state: HealthState = HealthState(), *, rise: int = 2, fall: int = 3) -> str:  # noqa: B008
    """Feed ``+`` (passed), ``-`` (failed) and ``!`` (local error); the verdict after each as ``U`` or ``D``."""
    verdicts = ""
    for sign in results:
        result = {"+": PASSED, "-": REFUSED, "!": LOCAL}[sign]
        state, transition = step(state, result, rise=rise, fall=fall)
        verdicts += {Verdict.UP: "U", Verdict.DOWN: "D"}[state.verdict].lower() if not transition else (
            "U" if transition.verdict is Verdict.UP else "D"
        )  # fmt: skip
    return verdicts


@pytest.mark.parametrize(
    ("results", "verdicts"),
    [
        ("+", "U"),  # the first result decides alone
        ("-", "D"),
        ("+---", "UuuD"),  # then fall counts
        ("-++", "DdU"),  # and rise
        ("+--+--", "Uuuuuu"),  # in a row
        ("-+-+-", "Ddddd"),
        ("!!+", "ddU"),  # a local error is no result
        ("+--!-", "UuuuD"),  # and does not break a row
        ("+!!!!!", "Uuuuuu"),
        ("+---++---", "UuuDdUuuD"),
    ],
)
def test_verdicts(results: str, verdicts: str) -> None:
    """Capital letters are transitions."""
    assert run(results) == verdicts


def test_rise_and_fall_of_one_follow_every_result() -> None:
    assert run("+-+-", rise=1, fall=1) == "UDUD"


def test_first_verdict_is_marked_and_carries_its_reason() -> None:
    state, transition = step(HealthState(), REFUSED, rise=2, fall=3)
    assert transition == Transition(Verdict.DOWN, DownReason.REFUSED, "connection refused", first=True)
    assert state == HealthState(Verdict.DOWN, 0, True, DownReason.REFUSED, "connection refused")


def test_later_transition_is_not_first() -> None:
    _, transition = step(replace(DOWN, streak=1), PASSED, rise=2, fall=3)
    assert transition == Transition(Verdict.UP, None, "200 OK", first=False)


def test_a_streak_shows_how_far_it_is() -> None:
    state, _ = step(UP, TIMEOUT, rise=2, fall=3)
    assert (state.verdict, state.streak, state.reason) == (Verdict.UP, 1, None)
    assert state.detail == "no answer in 1 s (1 of 3 to be down)"


def test_the_reason_of_a_down_server_follows_the_last_failure() -> None:
    state, transition = step(DOWN, TIMEOUT, rise=2, fall=3)
    assert transition is None
    assert (state.reason, state.detail) == (DownReason.TIMEOUT, "no answer in 1 s")


def test_a_local_error_is_visible_and_changes_nothing_else() -> None:
    before = replace(UP, streak=2)
    state, transition = step(before, LOCAL, rise=2, fall=3)
    assert transition is None
    assert replace(state, detail=before.detail) == before
    assert "no source port left" in state.detail


@given(st.text("+-!", max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_a_transition_needs_its_row_of_results(results: str, rise: int, fall: int) -> None:
    verdicts = run(results, rise=rise, fall=fall)
    counted = [(sign, verdict) for sign, verdict in zip(results, verdicts, strict=True) if sign != "!"]
    for place, (sign, verdict) in enumerate(counted):
        if place and verdict in "UD":
            needed = rise if sign == "+" else fall
            assert [it for it, _ in counted[place + 1 - needed : place + 1]] == [sign] * needed


def test_all_monitors_must_pass() -> None:
    late = replace(DOWN, reason=DownReason.TIMEOUT)
    assert combine([UP, UP]) == UP
    assert combine([UP, late, DOWN]) == late
    assert combine([HealthState(), UP]).reason is DownReason.UNCHECKED


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        (TCP_MONITOR, "10.0.0.1:80"),
        (replace(TCP_MONITOR, port=8081), "10.0.0.1:8081"),
        (replace(TCP_MONITOR, address=ip_address("10.9.9.9")), "10.9.9.9:80"),
        (
            replace(TCP_MONITOR, through=Passage(endpoint("192.0.2.9:443"), Protocol.TCP, Forwarding.DSR)),
            "10.0.0.1:443",
        ),
    ],
)
def test_what_is_probed(monitor: HealthMonitor, expected: str) -> None:
    assert target_key(server("10.0.0.1:80"), monitor) == ProbeTarget(endpoint(expected), monitor)


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 5), st.integers(1, 5))
def test_f43_a_server_that_flaps_changes_its_verdict_at_most_twice_in_rise_and_fall_probes(
    results: list[bool], rise: int, fall: int
) -> None:
    state, changes = HealthState(), 0
    for passed in results:
        state, transition = step(state, PASSED if passed else REFUSED, rise=rise, fall=fall)
        changes += transition is not None
    assert changes <= 2 + 2 * len(results) // (rise + fall)


def test_f43_a_server_that_fails_every_other_probe_never_changes() -> None:
    state, first = step(HealthState(), PASSED, rise=2, fall=3)
    assert first is not None
    for _ in range(100):
        state, down = step(state, REFUSED, rise=2, fall=3)
        state, up = step(state, PASSED, rise=2, fall=3)
        assert (down, up) == (None, None)
