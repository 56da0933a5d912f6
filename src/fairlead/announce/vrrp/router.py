# SPDX-License-Identifier: Apache-2.0
"""One VRRP instance on this host: its machine, tied to interfaces, addresses and sockets.

Invariants: the machine runs exactly while its interface has carrier and an address to send from, and this node once
was ready for it. The addresses are held while the machine is Active; after a planned release they are kept until
the next owner has spoken, so that no packet finds nobody, but no longer than it takes to be Active again or to end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fairlead.announce.addresses import Addresses
from fairlead.announce.base import Event, InstanceReport, Stance
from fairlead.announce.netlink import Netlink
from fairlead.announce.vrrp import addressing
from fairlead.announce.vrrp.wire import Datagram, Wire, group_of
from fairlead.model.net import IPAddress
from fairlead.model.vip import Vip, VrrpChecksum, VrrpInstance
from fairlead.protocols.vrrp.machine import (
    DEGRADED_PRIORITY,
    RELEASE_PRIORITY,
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
from fairlead.protocols.vrrp.packet import Advertisement, ChecksumForm, InvalidReason, encode

HOLD_LIMIT_S = 30.0  # an agent that never says "ready" must not leave the addresses without an owner
CLAIM_PRIORITY = 254
CLAIM_INTERVALS = 3  # of this priority: enough that one is heard
LINGER_S = 0.02  # from the next owner's first advertisement until its gratuitous ARP is out
_PLANNED = (Why.RELEASE, Why.SHUTDOWN, Why.GROUP)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all instances share.

    Attributes:
        host: Links and addresses.
        addresses: Who keeps the VIPs.
        wire: Returns the wire of an interface and family, if it can be had.
        tell: Takes events.
        count: Takes the interface and the reason of each ignored advertisement.
    """

    host: Netlink
    addresses: Addresses
    wire: Callable[[int, str, int], Wire | None]
    tell: Callable[[Event], None]
    count: Callable[[str, InvalidReason], None]


class Router:
    """One instance with its VIPs.

    Args:
        instance: What is configured.
        vips: Its addresses; the first one on its interface decides the family.
        around: What it shares with the others.
        now: Monotonic seconds.
    """

    def __init__(self, instance: VrrpInstance, vips: tuple[Vip, ...], around: Surroundings, now: float) -> None:
        self.instance = instance
        self.vips = vips
        self.stance = Stance(ready=False)
        self.released = False
        self.leaving = False
        self._host = around.host
        self._addresses = around.addresses
        self._wire_of = around.wire
        self._tell = around.tell
        self._count = around.count
        self._machine: VirtualRouter | None = None
        self._parameters: Parameters | None = None
        self._wire: Wire | None = None
        self._hold_until = now + HOLD_LIMIT_S
        self._was_ready = self._starts_unready = False
        self._claim_until: float | None = None
        self._drop_at: float | None = None
        self._lingering = False
        self._moves: list[Moved] = []
        self._strangers: dict[IPAddress, tuple[IPAddress, ...]] = {}
        self._active: IPAddress | None = None
        self._why, self._since = "", now
        self._transitions = self._sent = self._received = self._conflicts = 0

    # -- what the process asks -------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """4 or 6."""
        return next(vip.address.version for vip in self.vips if vip.interface == self.instance.interface)

    @property
    def state(self) -> VrrpState:
        """Of the machine; INITIALIZE while none runs."""
        return VrrpState.INITIALIZE if self._machine is None else self._machine.state

    @property
    def finished(self) -> bool:
        """It was told to leave and has handed over."""
        return self.leaving and not self._lingering and self.state is VrrpState.INITIALIZE

    def is_on(self, wire: Wire) -> bool:
        """Whether its advertisements come in there."""
        return self._wire is wire

    def next_at(self) -> float | None:
        """When ``handle_timers`` wants to be called."""
        moments = [self._claim_until, self._drop_at]
        if self._machine is not None:
            moments.append(self._machine.get_timer())
        elif not self._was_ready:
            moments.append(self._hold_until)
        return min((moment for moment in moments if moment is not None), default=None)

    def take_moves(self) -> list[Moved]:
        """What changed since the last call, for the other instances of the group."""
        moves, self._moves = self._moves, []
        return moves

    def report(self, now: float) -> InstanceReport:
        """How it is."""
        state = self.state
        own = None if self._parameters is None else str(self._parameters.source)
        heard = None if self._active is None else str(self._active)
        return InstanceReport(
            name=self.instance.name,
            state=state.value,
            priority=self._priority(now)[0],
            why=self._explain(now),
            since_s=now - self._since,
            active=own if state is VrrpState.ACTIVE else heard,
            released=self.released,
            transitions_total=self._transitions,
            sent_total=self._sent,
            received_total=self._received,
            conflicts_total=self._conflicts,
        )

    # -- what may change it ----------------------------------------------------------------------------------

    def update(self, now: float) -> None:
        """Bring the machine in line with configuration, stance and host."""
        self._was_ready = self._was_ready or self.stance.ready
        parameters, wire = self._wanted_parameters(now)
        if parameters is None or wire is None:
            if self._machine is not None:
                self._stop(now, linger=self.leaving)
            return
        self._wire = wire
        if self._machine is None or self._parameters is None:
            self._parameters = parameters
            self._machine = VirtualRouter(parameters)
            self._machine.startup(now)
        elif parameters != self._parameters:
            self._change(self._parameters, parameters, now)
        self._carry_out(now)
        if self.state is VrrpState.ACTIVE:
            for vip in self.vips:
                if not self._addresses.held(vip):
                    self._addresses.hold(vip, now)

    def leave(self, now: float) -> None:
        """Hand over for good; ``finished`` says when."""
        if not self.leaving:
            self.leaving = True
            self.update(now)

    def release(self, now: float, why: Why = Why.RELEASE) -> None:
        """Hand over, and stay behind until ``claim`` when the operator wants it."""
        if why is Why.RELEASE:
            self.released = True
            self.update(now)
        if self._machine is not None:
            self._machine.release(now, why)
            self._carry_out(now)

    def claim(self, now: float, why: Why = Why.CLAIM) -> None:
        """Take over; an operator's claim beats every priority but the owner's, for a moment."""
        if why is Why.CLAIM:
            self.released = False
            self._claim_until = now + CLAIM_INTERVALS * self.instance.interval_cs / 100
            self.update(now)
        if self._machine is not None:
            self._machine.claim(now, why)
            self._carry_out(now)

    def receive(self, advertisement: Advertisement, datagram: Datagram, now: float) -> None:
        """An advertisement for this VRID on this wire that could be read."""
        if advertisement.version != self.instance.version:
            self._count(self.instance.interface, InvalidReason.VERSION)
            return
        on = None if self._wire is None else self._wire.index
        if not addressing.is_neighbour(self._host, self.instance, datagram.source, on):
            self._count(self.instance.interface, InvalidReason.SOURCE)
            return
        self._received += 1
        foreign = self._parameters is None or datagram.source != self._parameters.source
        speaks = foreign and advertisement.priority != RELEASE_PRIORITY
        if self._lingering and speaks:
            self._drop_at = min(now + LINGER_S, self._drop_at or now + LINGER_S)
        if self._machine is not None:
            self._machine.receive_advertisement(advertisement, datagram.source, now)
            self._carry_out(now)
        if speaks and self.state is VrrpState.BACKUP:
            self._active = datagram.source

    def handle_timers(self, now: float) -> None:
        """Do what is due."""
        if self._drop_at is not None and now >= self._drop_at:
            self._end_linger(now)
        if self._claim_until is not None and now >= self._claim_until:
            self._claim_until = None
            self.update(now)
        if self._machine is None:
            if not self._was_ready and now >= self._hold_until:
                self._hold_until = now + HOLD_LIMIT_S
                self._starts_unready = True
                self.update(now)
            return
        self._machine.handle_timer(now)
        self._carry_out(now)

    # -- rules -----------------------------------------------------------------------------------------------

    def _wanted_parameters(self, now: float) -> tuple[Parameters | None, Wire | None]:
        """What the machine should run with; None: it should not run."""
        link = self._host.link(self.instance.interface)
        held_back = self._machine is None and not self._was_ready and not self._starts_unready
        if self.leaving or held_back or link is None or not link.carrier:
            return None, None
        source = addressing.source(self._host, self.instance, self.vips, self.family, link.index)
        if source is None:
            return None, None
        wire = self._wire_of(link.index, link.name, self.family)
        i = self.instance
        form = None if i.checksum is VrrpChecksum.AUTO else ChecksumForm(i.checksum)
        priority, _ = self._priority(now)
        advertised = addressing.advertised(self.instance, self.vips, self.family)
        return (
            Parameters(
                i.vrid, priority, i.interval_cs, advertised, source, i.version, i.preempt, i.preempt_delay_s, form
            ),
            wire,
        )

    def _priority(self, now: float) -> tuple[int, str | None]:
        """What it advertises now, and why not what is configured."""
        if self._claim_until is not None and now < self._claim_until and self.instance.priority < CLAIM_PRIORITY:
            return CLAIM_PRIORITY, "claimed by the operator"
        reason = self._degraded()
        return (self.instance.priority, None) if reason is None else (DEGRADED_PRIORITY, reason)

    def _degraded(self) -> str | None:
        if self.released:
            return "released by the operator"
        for vip in self.vips:
            link = self._host.link(vip.interface)
            if link is None or not link.carrier:
                return f"{vip.interface} has no carrier"
            if (trouble := self._addresses.trouble(vip)) is not None:
                return f"{vip}: {trouble}"
        if not self._was_ready:
            return "the agent has not said that it is ready"
        return self.stance.degraded

    def _explain(self, now: float) -> str:
        """Why it stands where it stands, in one line."""
        link = self._host.link(self.instance.interface)
        if link is None:
            return f"there is no interface {self.instance.interface}"
        if not link.carrier:
            return f"{self.instance.interface} has no carrier"
        if self._machine is None:
            return "waits for the first verdicts" if not self._was_ready else "no address to send from"
        reason = self._priority(now)[1]
        return self._why if reason is None else f"{self._why}; {reason}"

    def _change(self, old: Parameters, new: Parameters, now: float) -> None:
        assert self._machine is not None
        self._parameters = new
        same_router = (old.vrid, old.version, old.source.version) == (new.vrid, new.version, new.source.version)
        if not same_router:
            self._machine.shutdown()
            self._carry_out(now)
            self._machine = VirtualRouter(new)
            self._machine.startup(now)
            return
        if replace(old, priority=new.priority) != new:
            self._machine = self._machine.reconfigured(replace(new, priority=old.priority))
        fell = new.priority == DEGRADED_PRIORITY != old.priority
        self._machine.set_priority(new.priority, now)
        self._carry_out(now)
        if fell and self._machine.state is VrrpState.ACTIVE:
            # Not every implementation takes over from a lower priority without `preempt`; from priority 0 all do.
            self._tell(Event("vrrp_degraded", self.instance.name, self._priority(now)[1] or "", "warning"))
            self._machine.release(now)

    def _stop(self, now: float, *, linger: bool) -> None:
        assert self._machine is not None
        active = self._machine.state is VrrpState.ACTIVE
        self._machine.shutdown()
        self._carry_out(now)
        self._machine = None
        self._active = None
        if self._lingering and linger and active:
            self._drop_at = now + self.instance.interval_cs / 100 + 5 * LINGER_S  # the others' skew, and some
        elif self._lingering:
            self._end_linger(now)

    def _carry_out(self, now: float) -> None:
        assert self._machine is not None
        for effect in self._machine.take_effects():
            match effect:
                case Send(advertisement=advertisement):
                    self._send(advertisement)
                case Moved():
                    self._moved(effect, now)
                case Announce():
                    for vip in self.vips:
                        if not self._lingering:
                            self._addresses.announce(vip, now)
                case Ignored(reason=reason):
                    self._count(self.instance.interface, reason)
                case AddressesDiffer(source=source, addresses=addresses):
                    self._differs(source, addresses)

    def _send(self, advertisement: Advertisement) -> None:
        assert self._parameters is not None
        if self._wire is None:
            return
        source = self._parameters.source
        for destination in self.instance.peers or (group_of(source.version),):
            if destination != source:
                self._sent += self._wire.send(encode(advertisement, source, destination), source, destination)

    def _moved(self, moved: Moved, now: float) -> None:
        self._moves.append(moved)
        self._transitions += 1
        self._why, self._since = moved.why.value, now
        if moved.new is VrrpState.ACTIVE:
            self._lingering, self._drop_at = False, None
            for vip in self.vips:
                self._addresses.hold(vip, now)
        elif moved.old is VrrpState.ACTIVE:
            if moved.why in _PLANNED:
                self._lingering = True
                for vip in self.vips:
                    self._addresses.quiet(vip)
            else:
                self._end_linger(now)
        message = f"{moved.old} -> {moved.new}: {moved.why}"
        self._tell(Event(f"vrrp_{moved.new}", self.instance.name, message))

    def _end_linger(self, now: float) -> None:
        self._lingering, self._drop_at = False, None
        for vip in self.vips:
            self._addresses.drop(vip, now)

    def _differs(self, source: IPAddress, addresses: tuple[IPAddress, ...]) -> None:
        self._conflicts += 1
        if self._strangers.get(source) == addresses:
            return
        if len(self._strangers) < 100:
            self._strangers[source] = addresses
        listed = ", ".join(map(str, addresses))
        message = f"{source} advertises VRID {self.instance.vrid} with other addresses: {listed}"
        self._tell(Event("vrrp_conflict", self.instance.name, message, "error"))
