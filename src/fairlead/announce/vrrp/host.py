# SPDX-License-Identifier: Apache-2.0
"""What makes the process punctual and harmless: priority, locked memory, no garbage left to collect, few rights.

Each is done as far as the host permits it; what it refuses is returned in words.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import struct
from pathlib import Path

_PRIORITY = 10  # of SCHED_RR: above ordinary work, below the kernel's own threads
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NEEDED = 1 << 12 | 1 << 13  # CAP_NET_ADMIN, CAP_NET_RAW
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4


def missing_rights() -> bool:
    """Whether one of the two capabilities that the work needs is not there."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return effective & _NEEDED != _NEEDED


def be_punctual() -> list[str]:
    """Run before ordinary processes, and never wait for memory to come back from a disk."""
    refused = []
    try:
        flags = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, flags, os.sched_param(_PRIORITY))
    except OSError as error:
        refused.append(f"SCHED_RR: {error.strerror} (LimitRTPRIO= in the unit grants it)")
    if (why := _lock_memory()) is not None:
        refused.append(f"locked memory: {why} (LimitMEMLOCK=infinity in the unit grants it)")
    gc.collect()
    gc.freeze()
    return refused


def _lock_memory() -> str | None:
    """Under a limit that the process could reach, locking what it will allocate would make allocations fail."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (OSError, ValueError):
        return "RLIMIT_MEMLOCK is too small"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return os.strerror(ctypes.get_errno())
    return None


def keep_few_rights() -> list[str]:
    """Keep the two capabilities that the work needs, and never gain another."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    # Effective, permitted, inheritable; first the low 32 bits of each, then the high ones.
    sets = ctypes.create_string_buffer(struct.pack("=IIIIII", _NEEDED, _NEEDED, 0, 0, 0, 0))
    refused = []
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.capset(header, sets) != 0:
        refused.append(f"capset: {os.strerror(ctypes.get_errno())}")
    return refused
