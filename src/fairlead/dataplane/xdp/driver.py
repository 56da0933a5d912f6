# SPDX-License-Identifier: Apache-2.0
"""The driver: DataPlane on top of the XDP program's maps.

Invariants: one lock orders all changes and observations, which run in a thread; nothing is loaded before something is
to be held; what is written in a run of Ops of one kind is flushed before the next kind, so that every cut works (a run
of servers and their tables is flushed in that order).
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

from fairlead.dataplane.base import Counters, Explanation, FlowFilter
from fairlead.dataplane.threads import to_its_end
from fairlead.dataplane.xdp import adoption, reading, records
from fairlead.dataplane.xdp.explain import Explainer
from fairlead.dataplane.xdp.holdings import Holdings
from fairlead.dataplane.xdp.host import Host
from fairlead.dataplane.xdp.installation import Installation
from fairlead.dataplane.xdp.look import look
from fairlead.dataplane.xdp.programs import Programs
from fairlead.dataplane.xdp.release import lingers, release
from fairlead.dataplane.xdp.room import Needs
from fairlead.dataplane.xdp.shown import Shown, without
from fairlead.dataplane.xdp.ways import Ways
from fairlead.errors import DataPlaneError, FairleadError, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion
from fairlead.model.state import (
    CloseListener,
    DeleteServer,
    DeleteService,
    DeleteTable,
    ObservedState,
    Op,
    OpenListener,
    Plan,
    PutServer,
    PutService,
    PutTable,
    TableSpec,
)
from fairlead.model.views import FlowPage
from fairlead.model.vip import Vip
from fairlead.model.xdp import XdpSettings
from fairlead.policy.plan import describe

SMALL = 64  # Ops
FEW = 8  # Ops
SMALL_TABLE = 4096  # slots
SCAN_S = 2.5  # a whole read-back costs time in proportion to what is held
SLICE_S = 0.001  # of it, for which a change waits
PAUSE_S = 0.01  # until the next one
NOTES_EVERY = 6  # looks; what is noted does not matter before the agent ends
RELEASE_S = 5.0
Slots = Callable[[TableSpec], "array[int]"]


class XdpDataPlane:
    """Forwards packets in the kernel.

    Args:
        settings: Of the configuration.
        programs: Object files.
        build_table: Fills a LookupTable; called in a thread.
        on_event: Called with a kind, a subject and a message of something people should know.
        root: Where to pin; None: the place of this network namespace.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        settings: XdpSettings,
        programs: Programs,
        build_table: Slots,
        on_event: Callable[[str, str, str], None],
        root: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build_table = build_table
        self._clock = clock
        self._lock = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._looks = 0
        self._host = Host(settings, on_event)
        self._in = Installation(settings, programs, self._host, on_event, root)
        self._ways = Ways(programs.ways, self._host, on_event)
        self._ways_at = 0.0
        self._specs: dict[str, TableSpec] = {}
        self._shown = Shown()
        self._damaged: set[object] = set()  # nouns that the kernel does not hold as they were written
        self._trouble: str | None = None
        self._scan_at = 0.0
        self._release_at = 0.0

    @property
    def _held(self) -> Holdings:
        return self._in.held

    def set_vips(self, vips: frozenset[Vip]) -> None:
        """Addresses that come and go."""
        self._host.vips = vips

    async def set_ways(self, ways: frozenset[Way]) -> None:
        """Let probes take these ways."""
        async with self._lock:
            await to_its_end(lambda: self._ways.set(ways))

    def mark_of(self, way: Way) -> int:
        """What packets bear that take this way; raises UnsupportedFeature when they cannot."""
        return self._ways.mark_of(way)

    def packets_of(self, way: Way) -> int:
        """How many packets have taken it."""
        return self._ways.packets_of(way)

    async def start(self) -> None:
        """Adopt what an earlier agent left in the kernel; load nothing else yet.

        Raises:
            FairleadError: The host cannot do it any more.
        """
        async with self._lock:
            await to_its_end(self._adopt)

    def _adopt(self) -> None:
        if self._in.adopt():
            adoption.adopt(self._in, self._clock)
            deque(look(self._in, self._damaged, notes=True), maxlen=0)
            self._shown.touch_all(self._held)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not self._in.running

    async def observe(self, *, thorough: bool = True) -> ObservedState:
        """What the maps hold; what differs from what was written is left out, so that it is written again."""
        if thorough:
            await self._look(0.0)
        async with self._lock:  # what was written is known, and no reason to go to a thread
            return self._without_damage()

    async def look(self) -> None:
        """Compare with the kernel in small parts, between which changes have their turn.

        What was looked at a moment ago is not looked at again.
        """
        await self._look(PAUSE_S)

    async def _look(self, pause_s: float) -> None:
        async with self._looking:
            async with self._lock:
                due = await to_its_end(self._begin)
            if not due:
                return
            self._looks += 1
            notes = self._looks % NOTES_EVERY == 0
            parts = chain(look(self._in, self._damaged, notes=notes), self._in.seek())
            while not await self._advance(parts):  # noqa: ASYNC110  # it is not waited for anything
                await asyncio.sleep(pause_s)
            async with self._lock:
                await to_its_end(self._end)

    def _begin(self) -> bool:
        """What cannot wait; whether it is time to look at everything."""
        held = self._held
        if self._clock() >= self._ways_at:
            self._ways.look_after()
            self._ways_at = self._clock() + SCAN_S
        if not self._in.running:
            return False
        held.later()
        held.flush()
        self._in.locate()
        return self._clock() >= self._scan_at

    async def _advance(self, parts: Iterator[None]) -> bool:
        """Look at some parts, for less than the way to a thread and back would cost; whether these were the last."""
        async with self._lock:
            until = self._clock() + SLICE_S
            return not self._in.running or all(self._clock() < until for _ in parts)

    def _end(self) -> None:
        if not self._in.running:
            return
        if self._in.look_after_interfaces():
            self._damaged |= self._held.listeners.keys()  # nothing came by them until now
        self._in.settler.step(self._held, self._clock())
        self._held.flush()
        if lingers(self._held) and self._clock() >= self._release_at:
            self._release_at = self._clock() + RELEASE_S
            live = self._in.census.count(fresh=True)
            if release(self._held, live.servers, live.services):
                self._held.flush()
        self._scan_at = self._clock() + SCAN_S

    def _without_damage(self) -> ObservedState:
        held, gone = self._held, self._damaged
        if self._in.unattached is not None:
            gone = gone | held.listeners.keys()
        return without(self._shown.present(held, self._specs), held, gone)

    def trouble(self) -> str | None:
        """An interface has lost the program, or the kernel does not forward."""
        if not self._lock.locked():
            self._trouble = self._in.trouble()
            if self._in.kernel.lost():
                self._scan_at = 0.0
        return self._trouble

    async def apply(self, plan: Plan) -> None:
        """Carry out a plan.

        Raises:
            DataPlaneError: With the first Op that failed.
        """
        if not plan:
            return
        if not self._in.running:
            async with self._lock:
                first = await self._build_and_load(plan)
                await to_its_end(lambda: self._carry_out(plan, first))
            return
        slots = await self._build(plan)
        async with self._lock:
            if self._is_quick(plan):
                self._apply(plan, slots)
            else:
                await to_its_end(lambda: self._apply(plan, slots))

    def _is_quick(self, plan: Plan) -> bool:
        """Whether it takes less than the way to a thread and back: few entries of maps, no question to netlink."""
        held = self._held
        return (
            self._in.running
            and self._in.unattached is None
            and len(plan.ops) <= FEW
            and not any(
                isinstance(op, OpenListener | CloseListener) or (isinstance(op, PutServer) and not held.knows(op.spec))
                for op in plan.ops
            )
        )

    async def _build_and_load(self, plan: Plan) -> dict[str, array[int]]:
        """Fill tables while the kernel looks through the program, for which it takes another CPU most of a second."""
        loading = asyncio.create_task(to_its_end(lambda: self._make_room(plan)))
        try:
            return await self._build(plan)
        finally:
            await loading

    async def _build(self, plan: Plan) -> dict[str, array[int]]:
        """Fill tables outside the lock: it takes a while, and one way to a thread and back for all of them."""
        held = self._held
        ops = [it for it in plan.ops if isinstance(it, PutTable)]
        todo = [it for it in ops if it.digest not in held.tables or it.digest in self._damaged]
        if len(todo) == 1 and todo[0].spec.size <= SMALL_TABLE:  # less than the way to a thread and back
            return self._fill(todo)
        return await asyncio.to_thread(self._fill, todo) if todo else {}

    def _fill(self, todo: Sequence[PutTable]) -> dict[str, array[int]]:
        slots: dict[str, array[int]] = {}
        for op in todo:
            try:
                slots[op.digest] = self._build_table(op.spec)
            except FairleadError as error:
                raise DataPlaneError(f"{describe(op)}: {error}", op) from error
        return slots

    def _apply(self, plan: Plan, slots: dict[str, array[int]]) -> None:
        self._make_room(plan)
        self._carry_out(plan, slots)

    def _make_room(self, plan: Plan) -> None:
        """Have the program loaded, with maps that are large enough, if anything is to be held."""
        puts = [op for op in plan.ops if isinstance(op, PutServer | PutTable | PutService | OpenListener)]
        if not self._in.running and not puts:
            return
        try:
            if not self._has_room(puts):
                self._in.have_room(self._needs(plan.ops))
        except (UnsupportedFeature, DataPlaneError) as error:
            raise DataPlaneError(str(error), puts[0] if puts else plan.ops[0]) from error

    def _carry_out(self, plan: Plan, slots: dict[str, array[int]]) -> None:
        if not self._in.running:
            return
        self._shown.touch(plan.ops)
        servers = len(self._held.servers_by_id)
        try:
            for _, run in groupby(plan.ops, key=_kind):
                self._run(tuple(run), slots)
        finally:
            self._in.finish()
            moved = any(isinstance(op, OpenListener | CloseListener) for op in plan.ops)
            if moved or len(self._held.servers_by_id) > servers:
                self._in.look_after_interfaces()
        if self._in.unattached is not None:
            opened = [op for op in plan.ops if isinstance(op, OpenListener)]
            raise DataPlaneError(self._in.unattached, opened[-1] if opened else plan.ops[-1])

    def _has_room(self, puts: Sequence[Op]) -> bool:
        """Whether a small change fits without counting everything."""
        if not self._in.running or len(puts) > SMALL or any(isinstance(op, OpenListener) for op in puts):
            return False
        held = self._held
        tables = [op.spec for op in puts if isinstance(op, PutTable)]
        units = sum(records.table_units(spec.size, len(spec.members)) for spec in tables)
        members = sum(len(spec.members) for spec in tables)
        return (
            min(held.server_ids.room, held.service_ids.room) > len(puts)
            and held.extents.room > 2 * units
            and all(self._in.room_of(name) > len(puts) for name in ("names_server", "names_service", "names_table"))
            and all(self._in.room_of(name) > members * len(puts) for name in ("replies4", "replies6"))
        )

    def _run(self, ops: Sequence[Op], slots: dict[str, array[int]]) -> None:
        """Do Ops of one kind, or servers and the tables that name them."""
        held = self._held
        op = ops[0]
        try:
            for op in ops:  # named in the error
                self._do(held, op, slots)
        except DataPlaneError as error:
            raise DataPlaneError(str(error), op) from error
        finally:
            try:
                held.flush()
            except DataPlaneError as error:
                raise DataPlaneError(f"{describe(ops[0])}: {error}", ops[0]) from error

    def _do(self, held: Holdings, op: Op, slots: dict[str, array[int]]) -> None:
        match op:
            case PutServer():
                held.put_server(op.spec)
                self._damaged.discard(op.spec.key)
            case DeleteServer(key):
                held.delete_server(key)
            case PutTable(digest, spec):
                if digest in slots:
                    held.put_table(digest, spec, slots[digest])
                self._specs[digest] = spec
                self._damaged.discard(digest)
            case DeleteTable(digest):
                held.delete_table(digest)
                self._specs.pop(digest, None)
            case PutService(spec):
                held.put_service(spec)
                self._damaged.discard(("service", spec.name))
            case DeleteService(name):
                held.delete_service(name)
            case OpenListener(listener):
                held.open(listener)
                self._damaged.discard(listener)
            case CloseListener(listener):
                held.close(listener)

    def _needs(self, ops: Iterable[Op]) -> Needs:
        """Room for what is held and what a plan adds."""
        held = self._held
        needs = Needs(held)
        for op in ops:
            match op:
                case PutServer():
                    needs.server(op.spec)
                case PutTable(digest, spec):
                    needs.table(digest, spec)
                case PutService(spec):
                    needs.service(spec)
                case OpenListener(listener):
                    needs.listener(listener)
        return needs

    async def counters(self, *, brief: bool = False) -> Counters:
        """All counters; flows that are established were counted a moment ago."""
        if not self._in.running:
            return Counters()
        async with self._lock:
            return await to_its_end(lambda: reading.counters(self._in, brief=brief))

    async def flows(self, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
        """Flows of the table, IPv4 first.

        Raises:
            DataPlaneError: The cursor is none of ours.
        """
        async with self._lock:
            return await to_its_end(lambda: reading.listed(self._in, which, cursor, limit))

    async def explain(self, question: FlowQuestion) -> Explanation | None:
        """From the maps, as the program reads them; None when no service of this data plane is there."""
        if not self._in.running:
            return None
        async with self._lock:
            return await to_its_end(lambda: Explainer(self._in, self._specs).explain(question))

    async def stop(self, *, drain_s: float) -> None:
        """Take no new flows, wait for the others, reset the rest, and leave nothing in the kernel."""
        if self._in.running:
            await self._drain(drain_s)
        async with self._lock:
            await to_its_end(self._remove)

    def _remove(self) -> None:
        self._ways.remove()
        self._in.remove()
        self._shown = Shown()

    async def _drain(self, drain_s: float) -> None:
        async with self._lock:
            await to_its_end(self._close_all)
        deadline = self._clock() + drain_s
        while self._clock() < deadline:
            async with self._lock:
                live = await to_its_end(lambda: self._in.census.count(fresh=True))
            if not live.services:
                return
            await asyncio.sleep(min(0.5, max(0.0, deadline - self._clock())))

    def _close_all(self) -> None:
        ops = [CloseListener(listener) for listener in self._held.listeners]
        self._shown.touch(ops)
        for op in ops:
            self._held.close(op.listener)
        self._held.flush()

    async def detach(self) -> None:
        """Let go; packets are forwarded as before."""
        async with self._lock:
            await to_its_end(self._let_go)

    def _let_go(self) -> None:
        self._ways.let_go()
        self._in.let_go()
        self._shown = Shown()


def _kind(op: Op) -> type[Op]:
    """What is flushed at once; servers are flushed before tables, whichever came first."""
    return PutServer if isinstance(op, PutTable) else type(op)
