# SPDX-License-Identifier: Apache-2.0
"""Keeps the addresses of the host as they should be, and the neighbours informed.

Invariants: an address is on the host exactly while it is held; one of ours that is not held, left behind by a crash
say, goes with the first ``check`` (F06); one that something else deleted is put back, and given up for a while when
that happens again and again (F05); a second answerer is an alarm that names its MAC.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.announce.base import Event, VipReport
from fairlead.announce.l2 import Announcements, Port
from fairlead.announce.netlink import Netlink
from fairlead.model.net import IPAddress
from fairlead.model.vip import Vip
from fairlead.policy.eligibility import contested
from fairlead.protocols.rtnetlink import Link

PROBE_S = 10.0
ALARM_PROBE_S = 2.0
SETTLE_S = 1.2  # after a change the former owner may still be heard
FIGHT_LOSSES, FIGHT_S = 5, 10.0
RETRY_S = 1.0


@dataclass(slots=True)
class _Address:
    vip: Vip
    since: float
    probe_at: float
    held: bool = False
    quiet: bool = False  # held until the next owner has spoken, who is no conflict
    announcements: Announcements = field(default_factory=Announcements)
    answers: dict[bytes, float] = field(default_factory=dict)
    alarm: bool = False
    conflicts: int = 0
    restored: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=FIGHT_LOSSES))
    trouble: str | None = None
    retry_at: float | None = None
    installed: bool = False


class Addresses:
    """All configured VIPs.

    Args:
        netlink: The host.
        tell: Takes events.
    """

    def __init__(self, netlink: Netlink, tell: Callable[[Event], None]) -> None:
        self._netlink = netlink
        self._tell = tell
        self._known: dict[IPAddress, _Address] = {}
        self._ports: dict[int, Port] = {}
        self._carriers: dict[str, bool] = {}

    def set(self, vips: Iterable[Vip], now: float) -> None:
        """Which addresses there are; those that changed are no longer held."""
        wanted = {vip.address: vip for vip in vips}
        for address in [a for a, it in self._known.items() if wanted.get(a) != it.vip]:
            del self._known[address]
        for address, vip in wanted.items():
            if address not in self._known:
                self._known[address] = _Address(vip, now, now + SETTLE_S)

    def hold(self, vip: Vip, now: float) -> None:
        """Have it from now on, and say so."""
        it = self._of(vip)
        if it is None:
            return
        if not it.held:
            it.held, it.since, it.trouble, it.retry_at = True, now, None, None
            it.losses.clear()
            self._settle(it, now)
        it.quiet = False
        self._install(it, now)
        self.announce(vip, now)

    def drop(self, vip: Vip, now: float) -> None:
        """Have it no more."""
        it = self._of(vip)
        if it is not None and it.held:
            it.held, it.quiet, it.since, it.installed = False, False, now, False
            it.announcements.stop()
            self._settle(it, now)
            self._remove_strays()

    def quiet(self, vip: Vip) -> None:
        """Have it still, but leave it to another to say so."""
        it = self._of(vip)
        if it is not None:
            it.quiet = True
            it.announcements.stop()

    def announce(self, vip: Vip, now: float) -> None:
        """Say anew that it is here, if it is."""
        it = self._of(vip)
        if it is not None and it.held:
            it.announcements.burst(now)
            self._announce_due(it, now)

    def announce_all(self, now: float) -> None:
        """As ``announce``, for all that are held."""
        for it in self._known.values():
            self.announce(it.vip, now)

    def trouble(self, vip: Vip) -> str | None:
        """Why it cannot be held, if it cannot."""
        it = self._of(vip)
        return it.trouble if it is not None else None

    def held(self, vip: Vip) -> bool:
        """Whether it is held."""
        it = self._of(vip)
        return it is not None and it.held

    def check(self, now: float) -> None:
        """Compare with the host and repair it."""
        self._remove_strays()
        self._open_ports()
        for it in self._known.values():
            link = self._netlink.link(it.vip.interface)
            carrier = link is not None and link.carrier
            if it.held:
                self._restore(it, link, now)
                if carrier and not self._carriers.get(it.vip.interface, True):
                    self.announce(it.vip, now)
        self._carriers = {link.name: link.carrier for link in self._netlink.links.values()}

    def hear(self, now: float) -> None:
        """Take in who claims which address."""
        for port in self._ports.values():
            for address, mac in port.hear():
                it = self._known.get(address)
                link = self._netlink.links.get(port.index)
                if it is None or link is None or link.name != it.vip.interface or mac == link.mac:
                    continue
                if now >= it.since + SETTLE_S and not it.quiet:
                    it.answers[mac] = now
                    self._judge(it, now)

    def filenos(self) -> tuple[int, ...]:
        """Of the sockets that may have something to hear."""
        return tuple(fd for port in self._ports.values() for fd in port.filenos())

    def next_at(self) -> float | None:
        """When ``handle_timers`` wants to be called."""
        moments = [it.probe_at for it in self._known.values()]
        for it in self._known.values():
            moments += [moment for moment in (it.announcements.next_at(), it.retry_at) if moment is not None]
        return min(moments, default=None)

    def handle_timers(self, now: float) -> None:
        """Announce, probe and try again what is due."""
        for it in self._known.values():
            if it.held:
                self._announce_due(it, now)
            if it.retry_at is not None and now >= it.retry_at:
                it.retry_at = None
                if it.held:
                    self._install(it, now)
            if now >= it.probe_at:
                self._probe(it, now)

    def reports(self, now: float) -> tuple[VipReport, ...]:
        """Every address as it is."""
        return tuple(
            VipReport(
                vip=str(it.vip),
                held=it.held and it.installed,
                since_s=now - it.since,
                conflict=it.alarm,
                conflicts_total=it.conflicts,
                restored_total=it.restored,
                answered_by=tuple(sorted(mac.hex(":") for mac in it.answers)),
                trouble=it.trouble,
            )
            for it in self._known.values()
        )

    def close(self) -> None:
        """Let go of the sockets."""
        for port in self._ports.values():
            port.close()
        self._ports.clear()

    def _of(self, vip: Vip) -> _Address | None:
        """What is known of it; None when its address belongs to another owner by now."""
        it = self._known.get(vip.address)
        return it if it is not None and it.vip == vip else None

    def _install(self, it: _Address, now: float) -> None:
        link = self._netlink.link(it.vip.interface)
        if link is None:
            it.trouble, it.installed = f"there is no interface {it.vip.interface}", False
            it.retry_at = now + RETRY_S
            return
        try:
            self._netlink.add(link.index, it.vip.address, it.vip.prefix)
        except OSError as error:
            if it.trouble is None:
                self._event("vip_not_added", it, f"the kernel refuses it: {error.strerror}", "error")
            it.trouble, it.installed = f"the kernel refuses it: {error.strerror}", False
            it.retry_at = now + RETRY_S
            return
        it.trouble, it.installed = None, True

    def _restore(self, it: _Address, link: Link | None, now: float) -> None:
        present = link is not None and (link.index, it.vip.address) in self._netlink.addresses
        if present or not it.installed:
            it.installed = it.installed or present
            return
        it.installed = False
        if len(it.losses) == FIGHT_LOSSES and now - it.losses[0] < FIGHT_S:
            it.losses.clear()
            it.trouble = "something else on this host deletes it again and again"
            it.retry_at = now + FIGHT_S
            self._event("vip_fight", it, it.trouble, "error")
            return
        it.losses.append(now)
        it.restored += 1
        self._install(it, now)
        self._event("vip_restored", it, "something else on this host deleted it", "warning")
        self.announce(it.vip, now)

    def _remove_strays(self) -> None:
        wanted = {(it.vip.interface, it.vip.address) for it in self._known.values() if it.held}
        for (index, address), found in list(self._netlink.addresses.items()):
            link = self._netlink.links.get(index)
            if link is None or not self._netlink.is_ours(found) or (link.name, address) in wanted:
                continue
            try:
                self._netlink.remove(found)
            except OSError as error:
                message = f"cannot be removed from {link.name}: {error.strerror}"
                self._tell(Event("vip_not_removed", f"{address}/{found.prefix}", message, "error"))

    def _open_ports(self) -> None:
        """A port for each interface that carries a VIP; loopback has no neighbours."""
        names = {it.vip.interface for it in self._known.values()}
        wanted = {link.index: link for link in self._netlink.links.values() if link.name in names and not link.loopback}
        for index in self._ports.keys() - wanted.keys():
            self._ports.pop(index).close()
        for index, link in wanted.items():
            if index not in self._ports:
                with contextlib.suppress(OSError):  # it has just gone, or gets another name: the next news say so
                    self._ports[index] = Port(index, link.name)

    def _announce_due(self, it: _Address, now: float) -> None:
        link = self._netlink.link(it.vip.interface)
        port = None if link is None else self._ports.get(link.index)
        while (turn := it.announcements.take(now)) is not None:
            if port is not None and link is not None:
                port.announce(it.vip.address, link.mac, turn, router=_is_router(link.name))

    def _probe(self, it: _Address, now: float) -> None:
        patience_s = 2.5 * (ALARM_PROBE_S if it.alarm else PROBE_S)
        it.answers = {mac: at for mac, at in it.answers.items() if now - at < patience_s}
        self._judge(it, now)
        if it.alarm:
            self.announce(it.vip, now)
        it.probe_at = now + (ALARM_PROBE_S if it.alarm else PROBE_S)
        link = self._netlink.link(it.vip.interface)
        if link is not None and link.index in self._ports:
            self._ports[link.index].probe(it.vip.address, link.mac)

    def _settle(self, it: _Address, now: float) -> None:
        it.answers.clear()
        it.alarm = False
        it.probe_at = now + SETTLE_S

    def _judge(self, it: _Address, now: float) -> None:
        alarm = contested(len(it.answers), held=it.held)
        if alarm and not it.alarm:
            it.conflicts += 1
            who = ", ".join(sorted(mac.hex(":") for mac in it.answers))
            here = " while this node owns it" if it.held else ""
            self._event("vip_conflict", it, f"answered by {who}{here}", "error")
            it.probe_at = min(it.probe_at, now + ALARM_PROBE_S)
            self.announce(it.vip, now)
        elif it.alarm and not alarm:
            self._event("vip_conflict_over", it, "one owner again", "info")
            self.announce(it.vip, now)
        it.alarm = alarm

    def _event(self, kind: str, it: _Address, message: str, level: str) -> None:
        self._tell(Event(kind, str(it.vip), message, level))


def _is_router(name: str) -> bool:
    """Whether this host forwards IPv6: neighbour advertisements say so, or hosts forget their route (RFC 4861)."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding").read_text().strip() == "1"
    except OSError:
        return False
