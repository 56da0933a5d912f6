# SPDX-License-Identifier: Apache-2.0
"""How many flows live, by service and by server: counted in the kernel, which alone tells the flow table's time.

Invariant: a count is never half done; who asks for one while another runs gets that one's answer.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress, count
from pathlib import Path

from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject

_REQUEST = struct.Struct("<4I")  # struct request of bpf/census.bpf.c
_CHUNK = 1 << 17  # blocks
_DUTY = 20  # a count of t seconds is not repeated for 20 t


@dataclass(frozen=True, slots=True)
class Count:
    """Live flows by id; ids without any are left out."""

    servers: Mapping[int, int] = field(default_factory=dict)
    services: Mapping[int, int] = field(default_factory=dict)


class Census:
    """Counts on request.

    Args:
        program: Object file of the counting program.
        maps: Those of the forwarding program.
        hertz: Jiffies per second.
    """

    def __init__(self, program: Path, maps: Mapping[str, BpfMap], hertz: int) -> None:
        reuse = {name: maps[name] for name in ("flows4", "flows6", "services")}
        sizes = {"service_flows": maps["services"].max_entries, "server_flows": maps["servers"].max_entries}
        self._loaded = LoadedObject(program, reuse=reuse, max_entries=sizes)
        self._services = self._loaded.maps["service_flows"].memory()
        self._servers = self._loaded.maps["server_flows"].memory()
        self._blocks = max(maps["flows4"].max_entries, maps["flows6"].max_entries)
        self._hertz = hertz
        self._lock = threading.Lock()
        self._last = Count()
        self._next_at = 0.0
        self._jiffies, self._at = 0, 0.0
        self._tell_time()

    def jiffies(self) -> int:
        """The flow table's time now, its low 32 bits."""
        return (self._jiffies + int((time.monotonic() - self._at) * self._hertz)) & 0xFFFFFFFF

    def count(self, *, fresh: bool = False) -> Count:
        """Live flows; unless ``fresh``, the last count while it is young in relation to what it cost."""
        with self._lock:
            started = time.monotonic()
            if started < self._next_at and not fresh:
                return self._last
            self._services[:] = bytes(len(self._services))
            self._servers[:] = bytes(len(self._servers))
            for first in range(0, self._blocks, _CHUNK):
                self._call(first, min(_CHUNK, self._blocks - first))
            self._last = Count(_numbers(self._servers), _numbers(self._services))
            ended = time.monotonic()
            self._next_at = ended + _DUTY * (ended - started)
            return self._last

    def close(self) -> None:
        """Unload."""
        self._services.close()
        self._servers.close()
        self._loaded.close()

    def _tell_time(self) -> None:
        self._call(0, 0)

    def _call(self, first: int, count: int) -> None:
        raw = self._loaded.programs["census"].call(_REQUEST.pack(first, count, 0, 0))
        self._at = time.monotonic()
        _, _, self._jiffies, _ = _REQUEST.unpack(raw)


def hertz() -> int:
    """Jiffies per second: what the coarse clock counts in (CLOCK_MONOTONIC_COARSE)."""
    return round(1 / time.clock_getres(6))


def _any_set(view: memoryview) -> bool:
    """Whether a byte of it is not 0."""
    raw = view.tobytes()
    return raw.count(0) < len(raw)


def _numbers(memory: object) -> dict[int, int]:
    view = memoryview(memory)  # type: ignore[arg-type]
    try:
        numbers = view.cast("I")
        every = numbers.tolist() if _any_set(view) else []
        numbers.release()
        return dict(zip(compress(count(), every), filter(None, every), strict=True))
    finally:
        view.release()
