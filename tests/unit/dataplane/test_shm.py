# SPDX-License-Identifier: Apache-2.0
"""What the agent reads of the memory that it shares with the workers."""

from __future__ import annotations

import os
from dataclasses import asdict

from fairlead.dataplane.proxy import abi
from fairlead.dataplane.proxy.shm import SharedMemory

SLOT = 2


def test_the_head_of_a_row_has_every_field_from_its_place() -> None:
    values = {
        "pid": 11,
        "accepting": 1,
        "active": 12,
        "descriptors_used": 13,
        "descriptors_limit": 14,
        "accept_pauses": 15,
    }
    memory = SharedMemory.create()
    try:
        row = abi.SHM.offset("worker") + SLOT * abi.WORKER_ROW.size
        for name, value in values.items():
            offset, size = abi.WORKER_ROW.fields[name]
            os.pwrite(memory.fd, value.to_bytes(size, "little"), row + offset)
        assert asdict(memory.worker(SLOT)) == values
    finally:
        memory.close()
