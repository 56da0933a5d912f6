# SPDX-License-Identifier: Apache-2.0
"""The driver: DataPlane on top of C workers that all hold the same.

Invariants: one lock orders all changes, observations and the feeding of new workers; workers get the Ops of a plan
in order, those of one kind pipelined; counters come out of the shared memory without asking anybody.
"""

from __future__ import annotations

import asyncio
import errno
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path

from fairlead.dataplane.base import Counters, Explanation, FlowFilter
from fairlead.dataplane.proxy import abi, codec, flows, listeners, observe
from fairlead.dataplane.proxy.adoption import adopt
from fairlead.dataplane.proxy.changes import Change, Changes
from fairlead.dataplane.proxy.control import Message, Reply, WorkerLost
from fairlead.dataplane.proxy.fleet import QUIT_WAIT_S, Fleet, Hooks, cpus, descriptor_limit
from fairlead.dataplane.proxy.listeners import Sockets
from fairlead.dataplane.proxy.observe import Stray
from fairlead.dataplane.proxy.registry import Registry
from fairlead.dataplane.proxy.shm import SharedMemory
from fairlead.dataplane.proxy.transparent import Routes
from fairlead.dataplane.proxy.workers import Worker
from fairlead.errors import DataPlaneError, FairleadError, UnsupportedFeature
from fairlead.model.health import Way
from fairlead.model.net import FlowQuestion, Protocol
from fairlead.model.state import ObservedState, Op, Plan, PutTable, TableSpec
from fairlead.model.views import FlowPage
from fairlead.model.vip import Vip
from fairlead.policy.plan import describe

SOME_WORKER_WAIT_S = 2.0
UPGRADE_DRAIN_S = 86400.0  # flows of a replaced worker version get a day to end by themselves
RETIRE_AFTER_OBSERVATIONS = 3  # nothing was applied by then: nothing is to be opened

_Sent = tuple[int, asyncio.Future[Reply]]  # slot of the worker, its answer
STRAY_AGE = 3  # observations; one plan that failed sees two
Slots = Callable[[TableSpec], "array[int]"]
_DELETE = {
    abi.Type.LISTEN_PUT: abi.Type.LISTEN_DEL,
    abi.Type.SERVICE_PUT: abi.Type.SERVICE_DEL,
    abi.Type.TABLE_PUT: abi.Type.TABLE_DEL,
    abi.Type.SERVER_PUT: abi.Type.SERVER_DEL,
}


class ProxyDataPlane:
    """Forwards TCP through worker processes.

    Args:
        runtime_dir: Holds the workers' control sockets; must exist.
        workers: How many; 0: one for each CPU this process may use.
        worker_path: The worker program.
        build_table: Fills a LookupTable; called in a thread.
        on_change: Called when a worker was replaced: the state should be observed soon.
        on_event: Called with a kind, a subject and a message of something people should know.
    """

    def __init__(
        self,
        *,
        runtime_dir: Path,
        workers: int,
        worker_path: Path,
        build_table: Slots,
        on_change: Callable[[], None],
        on_event: Callable[[str, str, str], None] | None = None,
    ) -> None:
        self._count = workers or cpus()
        self._build_table = build_table
        self._event = on_event or (lambda _kind, _subject, _message: None)
        hooks = Hooks(self._feed, self._starve, on_change, self._event)
        self._fleet = Fleet(runtime_dir, worker_path, hooks)
        self._sockets = Sockets()
        self._lock = asyncio.Lock()
        self._memory: SharedMemory | None = None
        self._registry = Registry(self._note, self._set_note)
        self._changes = Changes(self._registry, self._sockets, lambda: tuple(self._fleet.live), self._recycled)
        self._routes = Routes()
        self._routes_error = ""
        self._cache: observe.Cache = {}
        self._seen: tuple[int, dict[int, frozenset[bytes]], ObservedState] | None = None
        self._strays: dict[Stray, int] = {}
        self._observations = 0

    def set_vips(self, vips: frozenset[Vip]) -> None:
        """Addresses that come and go."""
        self._sockets.vips = frozenset(vip.address for vip in vips)

    async def set_ways(self, ways: frozenset[Way]) -> None:
        """Services of this plane have none: servers get other packets than clients send."""

    def mark_of(self, way: Way) -> int:
        """Raise UnsupportedFeature."""
        raise UnsupportedFeature(f"probing through {way.passage.vip}", "only dsr and tunnel have a way to take")

    def packets_of(self, way: Way) -> int:  # noqa: ARG002
        """None."""
        return 0

    def trouble(self) -> str | None:
        """Nothing: workers that are missing are an error of the next pass."""
        return None

    async def start(self) -> None:
        """Adopt the workers that run, start missing ones, let surplus ones end with their flows.

        Raises:
            DataPlaneError: No worker can be started.
        """
        if not 1 <= self._count <= abi.MAX_WORKERS:
            raise DataPlaneError(f"{self._count} workers are asked for; 1 to {abi.MAX_WORKERS} are possible")
        descriptor_limit()
        trouble = listeners.backlog_trouble()
        if trouble is not None:
            self._event("backlog_limited", "net.core.somaxconn", trouble)
        async with self._lock:
            self._memory = await adopt(self._fleet, self._registry, self._sockets, self._event)
            self._fleet.use(self._memory)
            for slot in sorted(self._fleet.live)[self._count :]:
                await self._drain_surplus(self._fleet.live[slot])
            await self._start_missing()
            for slot in set(self._memory.rows()) - {worker.slot for worker in self._fleet.sharing()}:
                if self._memory.worker(slot).pid:  # it ended without giving its row back
                    await self._fleet.repair(slot)

    async def _start_missing(self) -> None:
        missing = self._count - len(self._fleet.live)
        slots = list(islice(self._fleet.free_slots(), max(missing, 0)))
        if len(slots) < missing:
            raise DataPlaneError("too many workers still end their flows; try again when they have ended")
        started: list[Worker] = []
        try:
            for slot in slots:
                started.append(await self._fleet.start(slot))  # noqa: PERF401  # those that came up end if one does not
            for worker in started:
                await self._feed_locked(worker)
        except (DataPlaneError, WorkerLost) as error:
            await asyncio.gather(*(worker.quit(QUIT_WAIT_S) for worker in started))
            raise DataPlaneError(str(error)) from error

    async def look(self) -> None:
        """Workers answer fast."""

    async def observe(self, *, thorough: bool = True) -> ObservedState:  # noqa: ARG002 - workers answer fast
        """What all workers hold; what some of them hold beyond that, and nobody asked for again, is removed.

        Raises:
            DataPlaneError: No worker runs.
        """
        await self._fleet.someone(SOME_WORKER_WAIT_S)
        async with self._lock:
            self._observations += 1
            if self._observations >= RETIRE_AFTER_OBSERVATIONS:
                await self._retire_old()
            self._repair_routes()
            return await self._observe()

    async def apply(self, plan: Plan) -> None:
        """Carry out a plan on all workers.

        Ops of one kind that follow each other are sent together; when one of them fails the others may have been
        done, but nothing behind them is.

        Raises:
            DataPlaneError: With the first Op that failed.
        """
        await self._fleet.someone(SOME_WORKER_WAIT_S)
        slots = await self._build(plan)
        async with self._lock:
            self._changes.begin(plan, slots)
            try:
                for _, run in groupby(plan.ops, key=type):
                    await self._run(tuple(run))
            finally:
                self._changes.end()
            self._routes.follow(self._registry)
            await self._retire_old()

    async def counters(self, *, brief: bool = False) -> Counters:  # noqa: ARG002 - all are read alike
        """All counters, without a round trip to any worker."""
        memory = self._need_memory()
        return Counters(
            servers={key: memory.server(number) for key, number in self._registry.server_ids.items()},
            services={name: memory.service(number) for name, number in self._registry.service_ids.items()},
            workers=tuple(memory.worker_view(it.slot, it.pid, draining=it.draining) for it in self._fleet.sharing()),
        )

    async def flows(self, which: FlowFilter, cursor: str | None, limit: int) -> FlowPage:
        """Flows of one worker after the other; the cursor is SLOT:CURSOR.

        Raises:
            DataPlaneError: The cursor is none of ours.
        """
        return await flows.page(self._fleet.sharing(), self._registry, which, cursor, limit)

    async def explain(self, question: FlowQuestion) -> Explanation | None:  # noqa: ARG002  # policy knows as much
        """It holds nothing that the desired state does not say."""
        return None

    async def stop(self, *, drain_s: float) -> None:
        """Take no new flows, let the others end for ``drain_s`` seconds, reset the rest, end the workers."""
        self._sockets.close()
        await self._fleet.stop(drain_s)
        self._close()
        self._routes.remove()

    async def detach(self) -> None:
        """Let go of the workers; they go on."""
        self._fleet.detach()
        self._close()

    def _close(self) -> None:
        self._sockets.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _need_memory(self) -> SharedMemory:
        if self._memory is None:
            raise DataPlaneError("the proxy data plane is not running")
        return self._memory

    def _repair_routes(self) -> None:
        """What somebody removed comes back; if that fails, everything else goes on."""
        try:
            self._routes.follow(self._registry)
        except DataPlaneError as error:
            if str(error) != self._routes_error:
                self._event("transparent_failed", "routing rules", str(error))
            self._routes_error = str(error)
        else:
            self._routes_error = ""

    def _note(self, index: int) -> int:
        return self._need_memory().note(index)

    def _set_note(self, index: int, value: int) -> None:
        self._need_memory().set_note(index, value)

    def _recycled(self, kind: str, number: int) -> None:
        memory = self._need_memory()
        if kind == "server":
            memory.forget_server(number)
        else:
            memory.forget_service(number)

    # Changing

    async def _build(self, plan: Plan) -> dict[str, array[int]]:
        """Fill the tables that no worker got so far, outside the lock: it takes a while."""
        slots: dict[str, array[int]] = {}
        for op in plan.ops:
            if isinstance(op, PutTable) and not self._changes.is_filled(op.digest):
                try:
                    slots[op.digest] = await asyncio.to_thread(self._build_table, op.spec)
                except FairleadError as error:
                    raise DataPlaneError(f"{describe(op)}: {error}", op) from error
        return slots

    async def _run(self, ops: Sequence[Op]) -> None:
        """Ops of one kind, on all live workers at once."""
        asked: list[tuple[Op, Change, list[_Sent]]] = []
        failure: DataPlaneError | None = None
        for op in ops:
            try:
                change = self._changes.prepare(op)
            except DataPlaneError as error:
                failure = DataPlaneError(str(error), op)
                break
            sent = [
                (worker.slot, worker.control.submit(message))
                for worker in self._fleet.live.values()
                for message in change.messages(worker.slot)
            ]
            asked.append((op, change, sent))
        first: DataPlaneError | None = None
        for op, change, sent in asked:
            refusal = await _outcome(change, sent)
            if refusal is None:
                change.finish()
            elif first is None:
                first = DataPlaneError(f"{change.what}: the worker refused: {refusal}", op)
        if first or failure:
            raise first or failure  # type: ignore[misc]

    # Observing

    async def _observe(self) -> ObservedState:
        live = list(self._fleet.live.values())
        dumps = await self._dumps(live)
        if not dumps:
            raise DataPlaneError(f"no proxy worker answers; the last one: {self._fleet.last_death}")
        if self._seen is not None and self._seen[:2] == (self._registry.version, dumps) and not self._strays:
            return self._seen[2]
        state, strays = await asyncio.to_thread(self._read, dumps)
        await self._look_at(strays)
        self._seen = (self._registry.version, dumps, state)
        return state

    def _read(self, dumps: dict[int, frozenset[bytes]]) -> tuple[ObservedState, frozenset[Stray]]:
        """In a thread, for thousands of records take a tenth of a second; the lock keeps the registry as it is."""
        holdings = [observe.decode(slot, dump, self._cache) for slot, dump in dumps.items()]
        self._cache = {key: self._cache[key] for dump in dumps.values() for key in dump}
        state = observe.common(self._registry, holdings)
        return state, observe.strays(self._registry, state, holdings)

    async def _dumps(self, live: Iterable[Worker]) -> dict[int, frozenset[bytes]]:
        asked = [(worker.slot, worker.control.submit(Message(abi.Type.DUMP))) for worker in live]
        dumps = {}
        for slot, future in asked:
            try:
                reply = await future
            except WorkerLost:
                continue
            dumps[slot] = observe.keys(reply.records)
        return dumps

    async def _look_at(self, strays: frozenset[Stray]) -> None:
        """Remove what only some workers hold and no plan asked for since some observations.

        Listeners first, servers last; what is refused stays a stray and is tried again.
        """
        self._strays = {it: 0 if self._changes.asked(it) else self._strays.get(it, 0) + 1 for it in strays}
        self._changes.observed()
        lasting = [it for it, age in self._strays.items() if age >= STRAY_AGE]
        for put, delete in _DELETE.items():
            futures = []
            for stray in lasting:
                worker = self._fleet.live.get(stray.slot)
                if stray.kind is not put or worker is None:
                    continue
                body = codec.encode_listen(stray.id, stray.port) if stray.port else codec.encode_id(stray.id)
                self._changes.forget(stray)
                futures.append(worker.control.submit(Message(delete, body)))
            await asyncio.gather(*futures, return_exceptions=True)

    # Workers

    async def _feed(self, worker: Worker) -> None:
        async with self._lock:
            await self._feed_locked(worker)

    async def _feed_locked(self, worker: Worker) -> None:
        """Give a new worker all the others hold, listeners last.

        Raises:
            WorkerLost: It ended meanwhile.
        """
        refused: list[str] = []
        messages = self._changes.everything(worker.slot, refused.append)
        sent = [(message, worker.control.submit(message)) for message in messages]
        for message, future in sent:
            done = (await future).done
            if done.error:
                refused.append(done.message)
                self._changes.refused(message, worker.slot)
        if refused:
            self._event("worker_refused", f"worker {worker.slot}", f"{len(refused)} of its settings: {refused[0]}")
        self._fleet.admit(worker)

    def _starve(self, slot: int) -> None:
        self._sockets.release_worker(slot)

    async def _drain_surplus(self, worker: Worker) -> None:
        self._sockets.release_worker(worker.slot)
        await self._close_datagram_ports(worker)
        self._fleet.retire(worker, self._fleet.draining)
        await worker.drain(UPGRADE_DRAIN_S)
        self._event("worker_draining", f"worker {worker.slot}", "fewer workers are wanted; it ends with its last flow")

    async def _close_datagram_ports(self, worker: Worker) -> None:
        """A draining worker keeps its UDP sockets for answers: nobody else reads what would be sent to these."""
        ids = self._registry.service_ids
        futures = [
            worker.control.submit(Message(abi.Type.LISTEN_DEL, codec.encode_listen(ids.get(service) or 0, port)))
            for port, service in self._registry.ports.items()
            if port.protocol is Protocol.UDP
        ]
        await asyncio.gather(*futures, return_exceptions=True)

    async def _retire_old(self) -> None:
        """Workers of another version stop accepting once the new ones accept."""
        self._sockets.release_spare()
        for worker in tuple(self._fleet.old):  # one without flows ends, and leaves the list, meanwhile
            if not worker.draining:
                await worker.drain(UPGRADE_DRAIN_S)
                self._event("worker_draining", f"worker {worker.slot}", "a new version took over its listeners")


async def _outcome(change: Change, sent: Iterable[_Sent]) -> str | None:
    """Why a worker refused, if one did. One that ended does not count: its replacement is fed with this change."""
    refusal: str | None = None
    for slot, future in sent:
        try:
            done = (await future).done
        except WorkerLost:
            continue
        if done.error and not (change.deletes and done.error == errno.ENOENT):
            change.refused(slot)
            refusal = refusal or done.message or os.strerror(done.error)
    return refusal
