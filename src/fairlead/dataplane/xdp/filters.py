# SPDX-License-Identifier: Apache-2.0
"""Our two programs in tc(8), which see what leaves and what enters by an interface.

The handle of a filter says whether the qdisc that it hangs in was made for it: cleaning up needs no other memory, and
works when the BPF file system that others pin in has gone.

Invariant: a filter that is not ours is never touched, nor the qdisc while there is one in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.dataplane.xdp.host import Routes
from fairlead.dataplane.xdp.interfaces import interfaces
from fairlead.dataplane.xdp.libbpf.hooks import TcHook
from fairlead.dataplane.xdp.libbpf.programs import Program
from fairlead.errors import DataPlaneError
from fairlead.protocols.rtfilters import Filter

PRIORITY = 3  # before nearly everybody: a program that ends the search must not hide ours
MADE, FOUND = 0x464C01, 0x464C02  # handles: the qdisc was made for us, or it was there
DIRECTIONS = {"fairlead_out": True, "fairlead_in": False}  # program -> egress


def attach(routes: Routes, name: str, index: int, programs: Mapping[str, Program]) -> None:
    """Have these programs on an interface, instead of an earlier agent's.

    Raises:
        DataPlaneError: The kernel refuses; with what to do.
    """
    held = {program: _ours(routes, index, program) for program in DIRECTIONS}
    present = [it for found in held.values() for it in found]
    try:
        handle = present[0].handle if present else (MADE if TcHook.create(index) else FOUND)
        for program, egress in DIRECTIONS.items():
            loaded = programs[program]
            if [(it.name, it.handle) for it in held[program]] != [(f"{program}:[{loaded.id}]", handle)]:
                TcHook(index, egress=egress).attach(loaded, handle, PRIORITY, instead=bool(held[program]))
    except OSError as error:
        what = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"
        if not isinstance(error, PermissionError):
            what = f"another filter may have its priority, {PRIORITY} (tc filter show dev {name} egress)"
        raise DataPlaneError(f"tc takes no program on {name} ({error.strerror}): {what}") from error


def detach(routes: Routes, index: int) -> bool:
    """Take our programs from an interface, and the qdisc if it was made for them; whether there was anything."""
    found = [(program, it) for program in DIRECTIONS for it in _ours(routes, index, program)]
    for program, it in found:
        TcHook(index, egress=DIRECTIONS[program]).detach(it.handle, it.priority)
    made = any(it.handle == MADE for _, it in found)
    if made and not any(routes.filters(index, egress=egress) for egress in DIRECTIONS.values()):
        TcHook.destroy(index)
    return bool(found)


def cleanup() -> list[str]:
    """Remove every filter of ours in this network namespace; what that was, in words."""
    try:
        with Routes() as routes:
            present = sorted(interfaces().items())
            return [f"tc programs of interface {name}" for name, index in present if detach(routes, index)]
    except OSError:  # no netlink: then nothing was attached from here
        return []


def _ours(routes: Routes, index: int, program: str) -> list[Filter]:
    """The filters of one of our programs, by kind, place and the name that libbpf makes of the program's and its id."""
    return [
        it
        for it in routes.filters(index, egress=DIRECTIONS[program])
        if it.kind == "bpf"
        and it.name.startswith(f"{program}:[")
        and it.priority == PRIORITY
        and it.handle in (MADE, FOUND)
    ]
