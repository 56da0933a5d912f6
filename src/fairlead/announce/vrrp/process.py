# SPDX-License-Identifier: Apache-2.0
"""The process's loop: sockets, timers, and the wish of the agent.

Invariants: every datagram that has arrived is heard before a timer is looked at, also after the process was stopped
between the two; nothing here waits for anybody, the kernel's answers to netlink requests aside; time is
CLOCK_MONOTONIC. The agent may be away as long as it likes.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fairlead import __version__
from fairlead.announce.addresses import Addresses
from fairlead.announce.base import PROTOCOL, Event, Report, Stance, Wanted, decode, encode, read_wanted
from fairlead.announce.netlink import Netlink
from fairlead.announce.vrrp.control import Control
from fairlead.announce.vrrp.router import Router, Surroundings
from fairlead.announce.vrrp.wire import Datagram, Wire
from fairlead.model.vip import STATIC
from fairlead.protocols.vrrp.machine import VrrpState, Why
from fairlead.protocols.vrrp.packet import InvalidAdvertisement, InvalidReason
from fairlead.protocols.vrrp.packet import decode as decode_advertisement

TICK_S = 1.0
STALL_S = 1.0  # after a pause of this length somebody else may have claimed our addresses
FRESH_S = 0.002  # datagrams are read again when reading took this long,
MAX_ROUNDS = 10  # but not for ever


class Process:
    """All of it.

    Args:
        path: Of the control socket.
    """

    def __init__(self, path: Path) -> None:
        self._only_one = _lock_namespace()
        self._control = Control(path)
        self._host = Netlink()
        self._addresses = Addresses(self._host, self._control.tell)
        self._around = Surroundings(self._host, self._addresses, self._wire, self._control.tell, self._count)
        self._wires: dict[tuple[int, int], Wire] = {}
        self._routers: dict[str, Router] = {}
        self._leaving: list[Router] = []
        self._wanted: Wanted | None = None
        self._invalid: Counter[tuple[str, InvalidReason]] = Counter()
        self._epoll = select.epoll()
        self._watched: set[int] = set()
        self._ending = False
        self.asked_to_end = False
        self._tick_at = time.monotonic()
        self._ran_at = time.monotonic()

    def run(self) -> None:
        """Until the agent ends it."""
        while not (self._ending and not self._leaving):
            self._watch()
            now = time.monotonic()
            self._epoll.poll(max(0.0, min(self._next_at() - now, TICK_S)))
            for _ in range(MAX_ROUNDS):
                if self._hear() < FRESH_S:
                    break
            now = self._notice_stall()
            self._handle_timers(now)
            self._obey()
            if self.asked_to_end and not self._ending:
                self._command("quit", None, now)
            if self._control.take_told():
                self._report(time.monotonic())
        self._close()

    def tell(self, event: Event) -> None:
        """Tell the agent, now or when there is one."""
        self._control.tell(event)

    def _next_at(self) -> float:
        routers = (*self._routers.values(), *self._leaving)
        moments = [
            self._tick_at,
            self._addresses.next_at(),
            self._host.next_at(),
            *(router.next_at() for router in routers),
        ]
        return min(moment for moment in moments if moment is not None)

    def _watch(self) -> None:
        """Have every socket in the epoll set."""
        wires = (wire.fileno() for wire in self._wires.values())
        wanted = {self._host.fileno(), *self._control.filenos(), *self._addresses.filenos(), *wires}
        for fd in self._watched - wanted:
            try:
                self._epoll.unregister(fd)
            except OSError:  # closed, which took it out
                continue
        for fd in wanted:
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except FileExistsError:
                continue
        self._watched = wanted

    def _notice_stall(self) -> float:
        """The present. From call to call the whole loop is gone through, so wherever it was stopped, it shows."""
        now = time.monotonic()
        if now - self._ran_at > TICK_S + STALL_S:
            message = f"did not run for {now - self._ran_at:.1f} s"
            self._control.tell(Event("vrrp_stall", "vrrp", message, "warning"))
            self._addresses.announce_all(now)
        self._ran_at = now
        return now

    def _hear(self) -> float:
        """Read everything; how long ago that began."""
        began = time.monotonic()
        if self._host.read_news(began):
            self._refresh(began)
        for wire in list(self._wires.values()):
            for datagram in wire.receive_all():
                self._receive(wire, datagram, time.monotonic())
        self._addresses.hear(time.monotonic())
        return time.monotonic() - began

    def _receive(self, wire: Wire, datagram: Datagram, now: float) -> None:
        try:
            heard = decode_advertisement(datagram.data, datagram.source, datagram.destination, datagram.ttl)
        except InvalidAdvertisement as error:
            self._count(wire.name, error.reason)
            return
        for router in (*self._routers.values(), *self._leaving):
            if router.is_on(wire) and router.instance.vrid == heard.vrid:
                router.receive(heard, datagram, now)
                self._settle_group(router, now)
                return
        self._count(wire.name, InvalidReason.VRID)

    def _handle_timers(self, now: float) -> None:
        for router in (*self._routers.values(), *self._leaving):
            router.handle_timers(now)
            self._settle_group(router, now)
        if any(router.finished for router in self._leaving):
            self._leaving = [router for router in self._leaving if not router.finished]
            self._report(now)
        self._addresses.handle_timers(now)
        if now >= self._tick_at:
            self._tick_at = now + TICK_S
            self._refresh(now)
            self._control.flush()
            self._report(now)

    def _refresh(self, now: float) -> None:
        """The host, or a wish, has changed."""
        for router in self._routers.values():
            router.update(now)
            self._settle_group(router, now)
        if self._wanted is not None:
            self._addresses.check(now)
        routers = (*self._routers.values(), *self._leaving)
        for key in [key for key, wire in self._wires.items() if not any(router.is_on(wire) for router in routers)]:
            self._wires.pop(key).close()

    def _settle_group(self, moved: Router, now: float) -> None:
        """Instances of one sync group move together."""
        for move in moved.take_moves():
            if moved.instance.sync is None or move.why is Why.GROUP or moved.leaving:
                continue
            for other in self._routers.values():
                if other is moved or other.instance.sync != moved.instance.sync:
                    continue
                if move.new is VrrpState.ACTIVE:
                    other.claim(now, Why.GROUP)
                elif move.old is VrrpState.ACTIVE:
                    other.release(now, Why.GROUP)
                other.take_moves()

    # -- the agent -------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        if self._control.accept():
            self._control.send(encode("hello", {"pid": os.getpid(), "version": __version__, "protocol": PROTOCOL}))
            self._control.flush()
        for message in self._control.receive():
            now = time.monotonic()
            try:
                kind, body = decode(message)
                self._command(kind, body, now)
            except (ValueError, TypeError, KeyError) as error:
                self._control.tell(Event("vrrp_command", "vrrp", f"a message is not understood: {error!r}", "error"))
            self._report(now)

    def _command(self, kind: str, body: Any, now: float) -> None:
        match kind:
            case "set":
                self._set(read_wanted(body), now)
            case "release":
                self._routers[body].release(now)
                self._settle_group(self._routers[body], now)
            case "claim":
                self._routers[body].claim(now)
                self._settle_group(self._routers[body], now)
            case "report":
                pass
            case "quit":
                self._set(Wanted(), now)
                self._ending = True
            case _:
                raise ValueError(f"unknown message {kind}")

    def _set(self, wanted: Wanted, now: float) -> None:
        named = {instance.name: instance for instance in wanted.instances}
        for name in self._routers.keys() - named.keys():
            self._dismiss(name, now)
        lingering = tuple(vip for router in self._leaving for vip in router.vips)
        ours = {vip.address for vip in wanted.vips}
        self._addresses.set((*wanted.vips, *(vip for vip in lingering if vip.address not in ours)), now)
        for name, instance in named.items():
            vips = tuple(vip for vip in wanted.vips if vip.owner == name)
            router = self._routers.get(name)
            if router is None:
                router = self._routers[name] = Router(instance, vips, self._around, now)
            router.instance, router.vips = instance, vips
            stance = wanted.stances.get(name, Stance())
            if stance.ready or not router.stance.ready:  # an agent that knows nothing yet changes nothing
                router.stance = stance
        self._wanted = wanted
        for vip in wanted.vips:
            if vip.owner == STATIC and not self._addresses.held(vip):
                self._addresses.hold(vip, now)
        self._refresh(now)

    def _dismiss(self, name: str, now: float) -> None:
        router = self._routers.pop(name)
        router.leave(now)
        if not router.finished:
            self._leaving.append(router)

    def _report(self, now: float) -> None:
        invalid: dict[str, dict[str, int]] = {}
        for (interface, reason), count in self._invalid.items():
            invalid.setdefault(interface, {})[reason.value] = count
        instances = tuple(router.report(now) for router in self._routers.values())
        self._control.send(encode("report", Report(self._addresses.reports(now), instances, invalid)))

    # -- parts -----------------------------------------------------------------------------------------------

    def _wire(self, index: int, name: str, family: int) -> Wire | None:
        found = self._wires.get((index, family))
        if found is None:
            try:
                found = self._wires[index, family] = Wire(index, name, family)
            except OSError as error:
                message = f"no socket for VRRP on {name}: {error.strerror}"
                self._control.tell(Event("vrrp_socket", name, message, "error"))
                return None
        return found

    def _count(self, interface: str, reason: InvalidReason) -> None:
        self._invalid[interface, reason] += 1

    def _close(self) -> None:
        self._addresses.check(time.monotonic())
        self._control.flush()
        self._addresses.close()
        for wire in self._wires.values():
            wire.close()
        self._control.close()
        self._host.close()
        self._only_one.close()


def _lock_namespace() -> socket.socket:
    """One such process per network namespace, for it removes every address of ours that it does not hold.

    Raises:
        OSError: EADDRINUSE, there is one.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    lock.bind("\0fairlead-vips")
    return lock
