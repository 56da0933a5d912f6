# SPDX-License-Identifier: Apache-2.0
"""Taking over the workers that a former agent left running.

Invariant: whoever cannot be understood (another ABI, other ids, another shared memory) keeps forwarding until its
successors accept at the listeners it handed over; nobody is stopped here but workers that never got to work.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from fairlead.dataplane.proxy import abi, codec, observe
from fairlead.dataplane.proxy.changes import adopted
from fairlead.dataplane.proxy.control import Message, WorkerLost
from fairlead.dataplane.proxy.fleet import QUIT_WAIT_S, Fleet
from fairlead.dataplane.proxy.listeners import Sockets
from fairlead.dataplane.proxy.registry import Registry, Table
from fairlead.dataplane.proxy.shm import SharedMemory
from fairlead.dataplane.proxy.workers import Worker
from fairlead.errors import ContractViolation

Event = Callable[[str, str, str], None]


@dataclass(slots=True)
class _Handover:
    """What a worker hands over; the descriptors belong to whoever takes them."""

    worker: Worker
    listeners: list[tuple[codec.ListenHeld, int]]
    memory: int = -1


async def adopt(fleet: Fleet, registry: Registry, sockets: Sockets, event: Event) -> SharedMemory:
    """Sort the running workers into live, draining and old ones; the shared memory they use, or a new one."""
    ours: list[_Handover] = []
    for worker in await fleet.find():
        worker.watch(fleet.ended, fleet.changed)
        try:
            if not worker.hello.attached:
                await worker.quit(QUIT_WAIT_S)
                continue
            handover = await _handover(worker)
        except WorkerLost as error:
            event("worker_lost", f"worker {worker.slot}", str(error))
            worker.kill()
            continue
        if worker.hello.abi == abi.ABI_VERSION:
            ours.append(handover)
        else:
            _leave(fleet, handover, sockets, event, f"it speaks ABI {worker.hello.abi}, this version {abi.ABI_VERSION}")
    memory = _memory(ours)
    fleet.use(memory)
    for handover in sorted(ours, key=lambda it: (it.worker.draining, it.worker.slot)):
        if why := await _take(fleet, registry, sockets, memory, handover):
            _leave(fleet, handover, sockets, event, why)
    return memory


async def _handover(worker: Worker) -> _Handover:
    reply = await worker.control.request(Message(abi.Type.HANDOVER))
    handover = _Handover(worker, [])
    for index, record in enumerate(reply.records):
        fds = reply.fds.get(index, [])
        if not fds:
            continue
        if abi.HEADER.unpack(record)[0] == abi.Type.ATTACH:
            handover.memory = fds.pop(0)
        else:
            handover.listeners.append((codec.decode_listen(record), fds.pop(0)))
        for fd in fds:
            os.close(fd)
    return handover


def _memory(ours: list[_Handover]) -> SharedMemory:
    """That of a worker that takes flows, else that of one that drains, else a new one."""
    for handover in sorted(ours, key=lambda it: (it.worker.draining, it.worker.slot)):
        if handover.memory >= 0:
            with contextlib.suppress(ContractViolation):
                return SharedMemory(os.dup(handover.memory))
    return SharedMemory.create()


async def _take(
    fleet: Fleet, registry: Registry, sockets: Sockets, memory: SharedMemory, handover: _Handover
) -> str | None:
    """Make the worker one of the fleet, or say why it cannot be."""
    worker = handover.worker
    if handover.memory < 0 or not memory.same_file(handover.memory):
        return "it counts in another memory"
    try:
        dump = (await worker.control.request(Message(abi.Type.DUMP))).records
    except WorkerLost as error:
        worker.kill()
        return str(error)
    holdings = observe.decode(worker.slot, observe.keys(dump), {})
    if worker.draining:
        observe.remember(registry, holdings)
    elif not observe.adopt(registry, holdings):
        return "it knows other ids than the others"
    os.close(handover.memory)
    if worker.draining:
        fleet.retire(worker, fleet.draining)
        return None
    _remember(registry, holdings)
    for held, fd in handover.listeners:
        sockets.put(held.port, worker.slot, socket.socket(fileno=fd))
    fleet.admit(worker)
    return None


def _remember(registry: Registry, holdings: observe.Holdings) -> None:
    for server in holdings.servers.values():
        registry.servers.setdefault(server.key, server)
    for table in holdings.tables.values():
        registry.tables.setdefault(table.digest, Table(None, None))
    for held in holdings.services.values():
        digest = registry.table_ids.name(held.table) if held.table else None
        registry.services.setdefault(held.spec.name, adopted(held.spec, digest))
    for listen in holdings.listens:
        registry.ports.setdefault(listen.port, registry.service_ids.name(listen.service))
    registry.version += 1


def _leave(fleet: Fleet, handover: _Handover, sockets: Sockets, event: Event, why: str) -> None:
    """It goes on until its successors accept; its control socket makes room for theirs."""
    worker = handover.worker
    fleet.retire(worker, fleet.old)
    for held, fd in handover.listeners:
        sockets.put_spare(held.port, socket.socket(fileno=fd))
    if handover.memory >= 0:
        os.close(handover.memory)
    moved = worker.path.with_name(f"worker-{worker.slot}-{worker.pid}.sock")
    with contextlib.suppress(OSError):
        worker.path.rename(moved)
        worker.path = moved
    event("worker_outdated", f"worker {worker.slot}", f"process {worker.pid} is replaced: {why}")
