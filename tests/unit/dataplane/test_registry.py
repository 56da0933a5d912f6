# SPDX-License-Identifier: Apache-2.0
"""Ids rotate and outlive the agent; counters in the shared memory belong to one owner of an id at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairlead.dataplane.proxy import abi
from fairlead.dataplane.proxy.registry import Ids
from fairlead.dataplane.proxy.shm import SharedMemory
from fairlead.errors import ContractViolation, DataPlaneError


class Notes:
    """The number that outlives the agent."""

    def __init__(self) -> None:
        self.value = 0

    def load(self) -> int:
        return self.value

    def store(self, value: int) -> None:
        self.value = value

    def ids(self, limit: int = 6) -> Ids:
        return Ids("server", limit, self.load, self.store)


def test_a_freed_id_comes_last() -> None:
    ids = Notes().ids()
    recycled: list[int] = []
    assert [ids.claim(name, recycled.append) for name in "abc"] == [1, 2, 3]
    ids.release("a")
    assert ids.name(1) == "a"
    assert [ids.claim(name, recycled.append) for name in "de"] == [4, 5]
    assert recycled == []
    assert ids.claim("f", recycled.append) == 1
    assert recycled == [1]
    assert ids.name(1) == "f"


def test_a_name_keeps_its_id() -> None:
    ids = Notes().ids()
    assert ids.claim("a") == ids.claim("a") == ids.get("a") == 1
    assert list(ids.items()) == [("a", 1)]
    assert ids.name(7) == "#7"


def test_a_new_agent_goes_on_where_the_former_one_stopped() -> None:
    notes = Notes()
    former = notes.ids()
    for name in "abc":
        former.claim(name)
    former.release("c")
    heir = notes.ids()
    assert heir.adopt("a", 1)
    assert heir.adopt("a", 1)
    assert heir.adopt("b", 2)
    assert heir.claim("c") == 4  # not 3, which flows may still carry


def test_contradictions_are_not_adopted() -> None:
    ids = Notes().ids()
    assert ids.adopt("a", 1)
    assert not ids.adopt("a", 2)
    assert not ids.adopt("b", 1)
    ids.remember("old", 1)
    ids.remember("old", 3)
    assert (ids.name(1), ids.name(3)) == ("a", "old")
    assert not ids.holds(3)


def test_there_is_an_end_of_ids() -> None:
    ids = Notes().ids(3)
    ids.claim("a")
    ids.claim("b")
    with pytest.raises(DataPlaneError, match="at most 2 servers"):
        ids.claim("c")


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory.create()
    yield made
    made.close()


def write(memory: SharedMemory, slot: int, server: int, connections: int, active: int, *, streak: int = 0) -> None:
    """Count as the worker of ``slot`` would."""
    row = abi.SHM.offset("worker") + slot * abi.WORKER_ROW.size + abi.WORKER_ROW.offset("server")
    at = row + server * abi.SERVER_ROW.size
    memory._map[at : at + abi.SERVER_ROW.size] = abi.SERVER_ROW.pack(connections, 1, 2, 3, active, streak, 0, 0, 0)


def test_totals_are_those_of_all_rows_ever_used(memory: SharedMemory) -> None:
    memory.use_row(0)
    memory.use_row(5)
    for slot in (0, 5, 6):
        write(memory, slot, 7, 10, 0)
    assert memory.server(7).connections == 20
    assert memory.server(7).connect_failures == 2
    assert memory.server(8).connections == 0


def test_failures_in_a_row_are_told_by_worker(memory: SharedMemory) -> None:
    for slot, streak in ((0, 4), (2, 0), (5, 1)):
        memory.use_row(slot)
        write(memory, slot, 7, 10, 0, streak=streak)
    assert memory.server(7).streaks == {0: 4, 5: 1}
    memory.forget_server(7)
    assert memory.server(7).streaks == {}


def test_the_next_owner_of_an_id_starts_from_nothing_but_what_is_active(memory: SharedMemory) -> None:
    memory.use_row(0)
    write(memory, 0, 7, 10, 4)
    memory.forget_server(7)
    memory.forget_service(7)
    assert memory.server(7).connections == memory.server(7).bytes_out == 0
    row = abi.SHM.offset("worker") + abi.WORKER_ROW.offset("server") + 7 * abi.SERVER_ROW.size
    assert abi.SERVER_ROW.unpack(memory._map, row)[4] == 4


def test_the_memory_is_sparse_and_only_its_own_version_is_taken(memory: SharedMemory) -> None:
    import os

    assert os.fstat(memory.fd).st_blocks * 512 < 1 << 20
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(memory.fd, 0)
    other = os.memfd_create("other")
    with pytest.raises(ContractViolation):
        SharedMemory(other)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(other)
