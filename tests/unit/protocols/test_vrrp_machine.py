# SPDX-License-Identifier: Apache-2.0
"""One router's rules, moment by moment; what several do together is in tests/sim."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from fairlead.protocols.vrrp.machine import (
    AddressesDiffer,
    Announce,
    Ignored,
    Moved,
    Parameters,
    Send,
    VirtualRouter,
    VrrpState,
    Why,
)
from fairlead.protocols.vrrp.packet import Advertisement, ChecksumForm, InvalidReason

VIP = IPv4Address("198.51.100.10")
OURS, OTHER = IPv4Address("10.0.0.5"), IPv4Address("10.0.0.9")
PARAMETERS = Parameters(51, 100, 100, (VIP,), OURS)
SKEW_S = 156 / 256


def heard(priority: int, **changes: object) -> Advertisement:
    return replace(Advertisement(3, 51, priority, 100, (VIP,), ChecksumForm.RFC5798), **changes)  # type: ignore[arg-type]


def backup(**changes: object) -> VirtualRouter:
    router = VirtualRouter(replace(PARAMETERS, **changes))  # type: ignore[arg-type]
    router.startup(0.0)
    router.take_effects()
    return router


def active(**changes: object) -> VirtualRouter:
    router = backup(**changes)
    router.claim(0.0)
    router.take_effects()
    return router


def test_active_down_interval_is_three_intervals_and_the_skew() -> None:
    router = backup()
    assert router.get_timer() == pytest.approx(3 + SKEW_S)
    router.handle_timer(3.0)
    assert router.state is VrrpState.BACKUP
    router.handle_timer(3 + SKEW_S)
    effects = router.take_effects()
    assert isinstance(effects[0], Send)
    assert effects[1:] == (Moved(VrrpState.BACKUP, VrrpState.ACTIVE, Why.TIMEOUT), Announce())
    assert router.get_timer() == pytest.approx(3 + SKEW_S + 1)


def test_the_skew_of_version_2_is_in_seconds() -> None:
    assert backup(version=2, interval_cs=300).get_timer() == pytest.approx(9 + SKEW_S)


def test_a_backup_learns_the_interval_of_the_active_router() -> None:
    router = backup()
    router.receive_advertisement(heard(200, interval_cs=10), OTHER, 1.0)
    assert router.get_timer() == pytest.approx(1.0 + 0.3 + 0.1 * SKEW_S)


def test_priority_0_makes_a_backup_wait_only_its_skew() -> None:
    router = backup()
    router.receive_advertisement(heard(0), OTHER, 1.0)
    assert router.get_timer() == pytest.approx(1 + SKEW_S)


def test_without_preempt_a_worse_router_stays() -> None:
    router = backup()
    router.receive_advertisement(heard(50), OTHER, 1.0)
    assert router.get_timer() == pytest.approx(1 + 3 + SKEW_S)


def test_with_preempt_a_worse_router_is_not_heard() -> None:
    router = backup(preempt=True)
    router.receive_advertisement(heard(50), OTHER, 1.0)
    assert router.get_timer() == pytest.approx(3 + SKEW_S)


def test_the_delay_of_preemption_counts_from_the_first_worse_advertisement() -> None:
    router = backup(preempt=True, preempt_delay_s=10.0)
    for moment in (1.0, 2.0, 10.9):
        router.receive_advertisement(heard(50), OTHER, moment)
        assert router.get_timer() == pytest.approx(moment + 3 + SKEW_S)
    router.receive_advertisement(heard(50), OTHER, 11.0)
    assert router.get_timer() == pytest.approx(10.9 + 3 + SKEW_S)


def test_the_owner_starts_active() -> None:
    router = VirtualRouter(replace(PARAMETERS, priority=255))
    router.startup(0.0)
    assert Moved(VrrpState.INITIALIZE, VrrpState.ACTIVE, Why.OWNER) in router.take_effects()


def test_a_better_advertisement_makes_it_backup() -> None:
    router = active()
    router.receive_advertisement(heard(101), OTHER, 0.5)
    assert router.take_effects() == (Moved(VrrpState.ACTIVE, VrrpState.BACKUP, Why.PREEMPTED),)


@pytest.mark.parametrize(("source", "yields"), [(OTHER, True), (IPv4Address("10.0.0.1"), False)])
def test_between_equals_the_greater_address_wins(source: IPv4Address, yields: bool) -> None:
    router = active()
    router.receive_advertisement(heard(100), source, 0.5)
    assert (router.state is VrrpState.BACKUP) is yields


def test_f02_a_worse_advertisement_is_answered_and_the_neighbours_are_told() -> None:
    router = active()
    router.receive_advertisement(heard(50), OTHER, 0.5)
    send, announce = router.take_effects()
    assert isinstance(send, Send)
    assert announce == Announce()
    assert router.state is VrrpState.ACTIVE


def test_shutdown_says_goodbye_with_priority_0() -> None:
    router = active()
    router.shutdown()
    send, moved = router.take_effects()
    assert isinstance(send, Send)
    assert send.advertisement.priority == 0
    assert moved == Moved(VrrpState.ACTIVE, VrrpState.INITIALIZE, Why.SHUTDOWN)
    assert router.get_timer() is None


def test_a_backup_shuts_down_in_silence() -> None:
    router = backup()
    router.shutdown()
    assert router.take_effects() == (Moved(VrrpState.BACKUP, VrrpState.INITIALIZE, Why.SHUTDOWN),)


def test_before_startup_nothing_is_heard() -> None:
    router = VirtualRouter(PARAMETERS)
    router.receive_advertisement(heard(200), OTHER, 1.0)
    router.handle_timer(100.0)
    assert router.take_effects() == ()
    assert router.state is VrrpState.INITIALIZE


@pytest.mark.parametrize("state", [backup, active])
def test_our_own_advertisement_changes_nothing(state: type) -> None:
    router = state()
    timer = router.get_timer()
    router.receive_advertisement(heard(255), OURS, 0.5)
    assert router.take_effects() == (Ignored(InvalidReason.OWN, OURS),)
    assert router.get_timer() == timer


def test_a_second_owner_changes_nothing() -> None:
    router = VirtualRouter(replace(PARAMETERS, priority=255))
    router.startup(0.0)
    router.take_effects()
    router.receive_advertisement(heard(255), OTHER, 0.5)
    assert router.take_effects() == (Ignored(InvalidReason.OWNER, OTHER),)
    assert router.state is VrrpState.ACTIVE


def test_f08_other_addresses_on_our_vrid_are_told() -> None:
    router = backup()
    router.receive_advertisement(heard(200, addresses=(IPv4Address("192.0.2.1"),)), OTHER, 0.5)
    assert router.take_effects() == (AddressesDiffer(OTHER, (IPv4Address("192.0.2.1"),)),)


def test_f09_auto_sends_the_form_that_was_heard() -> None:
    router = backup()
    router.claim(0.0)
    router.receive_advertisement(heard(50, checksum=ChecksumForm.RFC9568), OTHER, 0.5)
    forms = [e.advertisement.checksum for e in router.take_effects() if isinstance(e, Send)]
    assert forms == [ChecksumForm.RFC5798, ChecksumForm.RFC9568]


def test_f09_a_fixed_form_is_kept() -> None:
    router = active(checksum=ChecksumForm.RFC9568)
    router.handle_timer(1.0)
    (send,) = router.take_effects()
    assert isinstance(send, Send)
    assert send.advertisement.checksum is ChecksumForm.RFC9568


def test_f10_only_differences_of_the_given_clock_count() -> None:
    early, late = VirtualRouter(PARAMETERS), VirtualRouter(PARAMETERS)
    early.startup(0.0)
    late.startup(1e9)
    assert late.get_timer() == pytest.approx(1e9 + (early.get_timer() or 0))


def test_a_changed_priority_goes_out_at_once() -> None:
    router = active()
    router.set_priority(1, 0.5)
    (send,) = router.take_effects()
    assert isinstance(send, Send)
    assert send.advertisement.priority == 1


def test_a_reconfigured_router_keeps_its_state_and_timer() -> None:
    router = active().reconfigured(replace(PARAMETERS, interval_cs=50))
    assert router.state is VrrpState.ACTIVE
    assert router.get_timer() == pytest.approx(1.0)
    router.handle_timer(1.0)
    assert router.get_timer() == pytest.approx(1.5)


def test_f08_another_site_on_our_vrid_moves_nothing() -> None:
    stranger = (IPv4Address("192.0.2.1"),)
    router = active()
    router.receive_advertisement(heard(255, addresses=stranger), OTHER, 0.5)
    assert router.take_effects() == (AddressesDiffer(OTHER, stranger),)
    assert router.state is VrrpState.ACTIVE
    waiting = backup()
    timer = waiting.get_timer()
    waiting.receive_advertisement(heard(255, addresses=stranger), OTHER, 0.5)
    assert waiting.get_timer() == timer


def test_f08_while_files_differ_in_part_there_is_still_one_owner() -> None:
    router = active()
    router.receive_advertisement(heard(200, addresses=(VIP, IPv4Address("192.0.2.1"))), OTHER, 0.5)
    assert router.state is VrrpState.BACKUP


def test_f02_the_last_word_of_another_active_router_is_answered_with_announcements() -> None:
    router = active()
    router.receive_advertisement(heard(0), OTHER, 0.5)
    effects = router.take_effects()
    assert isinstance(effects[0], Send)
    assert effects[0].advertisement.priority == 100
    assert effects[1] == Announce()


@pytest.mark.parametrize("priority", [50, 200])
def test_f01_who_steps_back_after_a_stall_says_so(priority: int) -> None:
    """Its host answered for the addresses all the time: the new owner must tell the neighbours once more."""
    router = active()
    router.receive_advertisement(heard(priority), OTHER, 10.0)
    send, moved = router.take_effects()
    assert isinstance(send, Send)
    assert send.advertisement.priority == 0
    assert isinstance(moved, Moved)
    assert moved.new is VrrpState.BACKUP
