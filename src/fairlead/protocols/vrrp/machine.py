# SPDX-License-Identifier: Apache-2.0
"""The virtual router's state machine, RFC 9568 section 6, without sockets or clocks.

    INITIALIZE ── startup ──> BACKUP ── Active_Down_Timer ──> ACTIVE
         ^                      ^  <── better advertisement ──   │
         └────── shutdown ──────┴──────── release ───────────────┘

Bytes, moments (monotonic seconds) and commands go in by methods; what must happen comes out as ``Effect`` values.
State and timer names are the RFC's. Invariants: an illegal input changes nothing; at most one timer is armed;
whoever calls gives ``receive_advertisement`` all that has arrived before ``handle_timer`` for the same moment,
so that a process that was stopped hears the others before it speaks.

Beyond the RFC, each for a failure that others had:
- After a stall of its own an Active router listens for one interval before it advertises again, and a Backup
  router never takes over because of its own stall (F01).
- Every advertisement of another router heard while Active, also its last one, is answered by telling the neighbours
  anew who owns the addresses, because a switch or a host may have believed the other (F02).
- An advertisement of the same VRID for other addresses alone is another site's and changes nothing (F08).
- Priority 1 is what a degraded node advertises: a node that is not degraded takes over from it even without
  ``preempt``, for that rule protects from needless moves, not from useful ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fairlead.model.net import IPAddress
from fairlead.protocols.vrrp.packet import Advertisement, ChecksumForm, InvalidReason

OWNER_PRIORITY = 255
DEGRADED_PRIORITY = 1
RELEASE_PRIORITY = 0  # RFC 9568 section 5.2.4: the Active router stops taking part
# An Active router that is late by less than this has not yet been given up by anybody: the others wait for
# 3 intervals and a skew after the last advertisement, which was sent one interval before the one that is late.
STALL_INTERVALS = 2


class VrrpState(StrEnum):
    """RFC 9568 section 6.3."""

    INITIALIZE = "initialize"
    BACKUP = "backup"
    ACTIVE = "active"


class Why(StrEnum):
    """Why a state was left; the same word in log, event and API."""

    STARTUP = "startup"
    SHUTDOWN = "shutdown"
    OWNER = "owner"  # priority 255 needs no election
    TIMEOUT = "timeout"  # no advertisement for Active_Down_Interval
    RELEASED_BY_PEER = "released_by_peer"  # the Active router sent priority 0
    PREEMPTED = "preempted"  # another router advertises a better priority
    STALLED = "stalled"  # others took over while this process did not run
    RELEASE = "release"  # the operator, or degraded health, gave it up
    CLAIM = "claim"  # the operator took it
    GROUP = "group"  # another virtual router of the sync group moved


@dataclass(frozen=True, slots=True)
class Parameters:
    """Of one virtual router.

    Attributes:
        vrid: 1 to 255.
        priority: 1 to 255; 255 owns the addresses.
        interval_cs: Advertisement_Interval, centiseconds, 1 to 4095.
        addresses: What is advertised, in order.
        source: Primary address of the interface, the tie-break between equal priorities.
        preempt_delay_s: How long a better router leaves a worse one in place; unused when ``preempt`` is False.
        checksum: None means auto: the form the others send.
    """

    vrid: int
    priority: int
    interval_cs: int
    addresses: tuple[IPAddress, ...]
    source: IPAddress
    version: int = 3
    preempt: bool = False
    preempt_delay_s: float = 0.0
    checksum: ChecksumForm | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send this advertisement to the group, or to every unicast peer."""

    advertisement: Advertisement


@dataclass(frozen=True, slots=True)
class Moved:
    """The state changed: hold the addresses exactly while ``new`` is ACTIVE."""

    old: VrrpState
    new: VrrpState
    why: Why


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the neighbours anew who owns the addresses: gratuitous ARP, unsolicited neighbour advertisements."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """An advertisement was not acted on."""

    reason: InvalidReason
    source: IPAddress


@dataclass(frozen=True, slots=True)
class AddressesDiffer:
    """Another router advertises this VRID with other addresses: two sites on one VRID, or files that differ (F08)."""

    source: IPAddress
    addresses: tuple[IPAddress, ...]


Effect = Send | Moved | Announce | Ignored | AddressesDiffer


class VirtualRouter:
    """One virtual router; see the module for the rules."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._priority = parameters.priority
        self._state = VrrpState.INITIALIZE
        self._active_interval_s = parameters.interval_cs / 100  # Active_Adver_Interval, learned from the Active router
        self._timer: float | None = None  # Adver_Timer when ACTIVE, Active_Down_Timer when BACKUP
        self._listening = False  # ACTIVE, after a stall, until the next timer
        self._preempt_at: float | None = None  # when the delay of preemption ends
        self._heard_form: ChecksumForm | None = None
        self._effects: list[Effect] = []

    @property
    def state(self) -> VrrpState:
        """Where the machine is."""
        return self._state

    @property
    def priority(self) -> int:
        """What it advertises and compares now."""
        return self._priority

    def get_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called."""
        return self._timer

    def take_effects(self) -> tuple[Effect, ...]:
        """What must happen because of the calls since the last one; in order."""
        effects, self._effects = tuple(self._effects), []
        return effects

    # -- commands --------------------------------------------------------------------------------------------

    def startup(self, now: float) -> None:
        """RFC 9568 section 6.4.1."""
        if self._state is not VrrpState.INITIALIZE:
            return
        if self._priority == OWNER_PRIORITY:
            self._become_active(now, Why.OWNER)
            return
        self._active_interval_s = self._interval_s
        self._become_backup(now, Why.STARTUP)

    def shutdown(self) -> None:
        """RFC 9568 sections 6.4.2 (115) and 6.4.3 (155); an Active router says goodbye with priority 0."""
        if self._state is VrrpState.ACTIVE:
            self._send(RELEASE_PRIORITY)
        if self._state is not VrrpState.INITIALIZE:
            self._timer = None
            self._move(VrrpState.INITIALIZE, Why.SHUTDOWN)

    def release(self, now: float, why: Why = Why.RELEASE) -> None:
        """Give the addresses up at once; another router takes over within its skew. Comes back if nobody does."""
        if self._state is VrrpState.ACTIVE:
            self._send(RELEASE_PRIORITY)
            self._active_interval_s = self._interval_s
            self._become_backup(now, why)

    def claim(self, now: float, why: Why = Why.CLAIM) -> None:
        """Take the addresses now. The present Active router yields only to a better priority."""
        if self._state is VrrpState.BACKUP:
            self._become_active(now, why)

    def set_priority(self, priority: int, now: float) -> None:
        """Advertise and compare another priority from now on; the next advertisement goes out at once."""
        if priority == self._priority:
            return
        self._priority = priority
        if self._state is VrrpState.ACTIVE and not self._listening:
            self._advertise(now)

    # -- inputs ----------------------------------------------------------------------------------------------

    def receive_advertisement(self, advertisement: Advertisement, source: IPAddress, now: float) -> None:
        """An advertisement that ``packet.decode`` accepted, for this VRID and version."""
        if self._state is VrrpState.INITIALIZE:
            return
        if source == self._parameters.source:
            self._effects.append(Ignored(InvalidReason.OWN, source))
            return
        if advertisement.priority == OWNER_PRIORITY == self._priority:
            self._effects.append(Ignored(InvalidReason.OWNER, source))
            return
        common = set(advertisement.addresses) & set(self._parameters.addresses)
        if common != set(advertisement.addresses) | set(self._parameters.addresses):
            self._effects.append(AddressesDiffer(source, advertisement.addresses))
        if not common:
            return  # another site's router on this VRID: who owns its addresses says nothing about ours (F08)
        if advertisement.checksum is not None:
            self._heard_form = advertisement.checksum
        if self._state is VrrpState.BACKUP:
            self._heard_as_backup(advertisement, now)
        else:
            self._notice_stall(now)
            self._heard_as_active(advertisement, source, now)

    def handle_timer(self, now: float) -> None:
        """Call when ``get_timer`` has passed; earlier calls change nothing."""
        if self._timer is None or now < self._timer:
            return
        if self._state is VrrpState.BACKUP:
            if now - self._timer > self._active_interval_s:
                # Not the Active router was silent, this process was: hear it first.
                self._timer = now + self._active_interval_s + self._skew_s
            else:
                self._become_active(now, Why.TIMEOUT)
            return
        if self._notice_stall(now):
            return
        self._advertise(now)
        if self._listening:
            self._listening = False
            self._effects.append(Announce())

    # -- rules -----------------------------------------------------------------------------------------------

    def _notice_stall(self, now: float) -> bool:
        """ACTIVE: when this process was stopped for long, listen for one interval. True when that begins."""
        if self._timer is None or now - self._timer < STALL_INTERVALS * self._interval_s:
            return False
        if self._priority == OWNER_PRIORITY:
            return False
        self._listening = True
        self._timer = now + self._interval_s
        return True

    def _heard_as_backup(self, heard: Advertisement, now: float) -> None:
        if heard.priority == RELEASE_PRIORITY:
            self._timer = now + self._skew_s
            return
        if heard.priority < self._priority and self._may_preempt(heard, now):
            return  # discarded: Active_Down_Timer runs on and makes this router Active
        if heard.priority >= self._priority:
            self._preempt_at = None
        self._active_interval_s = heard.interval_cs / 100
        self._timer = now + self._active_down_s

    def _may_preempt(self, heard: Advertisement, now: float) -> bool:
        if heard.priority == DEGRADED_PRIORITY:
            return True
        if not self._parameters.preempt:
            return False
        if self._preempt_at is None:
            self._preempt_at = now + self._parameters.preempt_delay_s
        return now >= self._preempt_at

    def _heard_as_active(self, heard: Advertisement, source: IPAddress, now: float) -> None:
        if heard.priority == RELEASE_PRIORITY:
            if not self._listening:
                self._advertise(now)
                self._effects.append(Announce())
            return
        # RFC 9568 section 6.4.3: between equal priorities the greater primary address wins.
        better = (heard.priority, int(source)) > (self._priority, int(self._parameters.source))
        took_over = self._listening and (
            better or (not self._parameters.preempt and heard.priority != DEGRADED_PRIORITY)
        )
        if better or took_over:
            self._active_interval_s = heard.interval_cs / 100
            if took_over:
                # While this process did not run its host went on answering for the addresses: whoever owns them now
                # hears from this that the neighbours must be told once more.
                self._send(RELEASE_PRIORITY)
            self._become_backup(now, Why.PREEMPTED if better else Why.STALLED)
            return
        # RFC 9568 section 6.4.3 (150): a worse router thinks it is Active. Tell it, and whoever believed it.
        self._listening = False
        self._advertise(now)
        self._effects.append(Announce())

    def _become_active(self, now: float, why: Why) -> None:
        self._preempt_at = None
        self._listening = False
        self._advertise(now)
        self._move(VrrpState.ACTIVE, why)
        self._effects.append(Announce())

    def _become_backup(self, now: float, why: Why) -> None:
        self._listening = False
        self._preempt_at = None
        self._timer = now + self._active_down_s
        self._move(VrrpState.BACKUP, why)

    def _advertise(self, now: float) -> None:
        self._send(self._priority)
        self._timer = now + self._interval_s

    def _send(self, priority: int) -> None:
        p = self._parameters
        form = None
        if p.version == 3 and p.source.version == 4:
            form = p.checksum or self._heard_form or ChecksumForm.RFC5798
        self._effects.append(Send(Advertisement(p.version, p.vrid, priority, p.interval_cs, p.addresses, form)))

    def _move(self, new: VrrpState, why: Why) -> None:
        old, self._state = self._state, new
        self._effects.append(Moved(old, new, why))

    @property
    def _interval_s(self) -> float:
        return self._parameters.interval_cs / 100

    @property
    def _skew_s(self) -> float:
        """Skew_Time, RFC 9568 section 6.1; of version 2, RFC 3768 section 6.1: in seconds, whatever the interval."""
        unit_s = 1.0 if self._parameters.version == 2 else self._active_interval_s
        return (256 - self._priority) / 256 * unit_s

    @property
    def _active_down_s(self) -> float:
        """Active_Down_Interval, RFC 9568 section 6.1."""
        return 3 * self._active_interval_s + self._skew_s

    def reconfigured(self, parameters: Parameters) -> VirtualRouter:
        """The same machine, in its present state, with other parameters; timers already armed run on."""
        other = VirtualRouter(parameters)
        for name in ("_state", "_active_interval_s", "_timer", "_listening", "_preempt_at", "_heard_form"):
            setattr(other, name, getattr(self, name))
        return other
