# SPDX-License-Identifier: Apache-2.0
"""The program on interfaces: pinned links, each in the mode that its driver can.

Invariants: an interface carries one program of ours, and goes from one to the next in one step; a program that is not
ours is never replaced.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fairlead.dataplane.xdp import pins
from fairlead.dataplane.xdp.interfaces import name_of
from fairlead.dataplane.xdp.libbpf.hooks import XDP_GENERIC, XDP_NATIVE, Link, attached_program
from fairlead.dataplane.xdp.libbpf.programs import Program, program_by_id
from fairlead.dataplane.xdp.pins import LINK, Event
from fairlead.errors import DataPlaneError, UnsupportedFeature

NATIVE, GENERIC = "native", "generic"
_NOT_NATIVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.E2BIG, errno.ENOMEM, errno.ENODEV})


@dataclass(slots=True)
class Attached:
    """One interface that carries our program."""

    name: str
    mode: str
    link: Link


class Links:
    """Interfaces of this network namespace that carry the program.

    Args:
        root: Where to pin.
        event: Called with a kind, a subject and a message of something people should know.
    """

    def __init__(self, root: Path, event: Event) -> None:
        self._root = root
        self._event = event
        self.attached: dict[int, Attached] = {}

    def adopt(self, program: Program) -> None:
        """Take over the links that an earlier agent pinned, and let them carry this program."""
        for index, path in pins.links(self._root):
            link = Link.at(path)
            _, alive = link.state()
            if not alive:
                link.close()
                path.unlink()
                continue
            self.attached[index] = Attached(name_of(index), _mode_of(index), link)
            self.renew(index, program, ())

    def attach(self, program: Program, name: str, index: int, mode: str) -> None:
        """Let a program see what comes in by an interface; ``mode`` is auto, native or generic.

        Raises:
            DataPlaneError: Another program is there, or the mode cannot be had.
        """
        if index in self.attached:
            return
        tries = {NATIVE: (NATIVE,), GENERIC: (GENERIC,)}.get(mode, (NATIVE, GENERIC))
        link, used, why = None, "", ""
        for used in tries:
            flags = XDP_NATIVE if used == NATIVE else XDP_GENERIC
            try:
                link = Link.attach(program, index, flags)
                break
            except OSError as error:
                foreign = attached_program(index)
                if error.errno in (errno.EBUSY, errno.EEXIST) and foreign:
                    raise DataPlaneError(_foreign(name, foreign)) from error
                if error.errno not in _NOT_NATIVE or used == tries[-1]:
                    hint = "; xdp.mode: generic works with every driver" if mode == NATIVE else ""
                    raise DataPlaneError(
                        f"XDP cannot be attached to {name} ({used} mode): {error.strerror}{hint}"
                    ) from error
                why = str(error.strerror)
        assert link is not None
        path = self._root / f"{LINK}{index}"
        path.unlink(missing_ok=True)
        link.pin(path)
        self.attached[index] = Attached(name, used, link)
        if used == GENERIC and mode != GENERIC:
            self._event(
                "xdp_generic",
                name,
                f"no native XDP there ({why}): its driver has none, or none for an MTU above about 3,500; "
                "generic mode works, but at a fraction of the speed",
            )

    def detach(self, index: int) -> None:
        """Take our program from an interface."""
        found = self.attached.pop(index, None)
        (self._root / f"{LINK}{index}").unlink(missing_ok=True)
        if found is not None:
            found.link.close()

    def lost(self) -> list[str]:
        """Names of interfaces that should carry the program and do not."""
        return [it.name for index, it in self.attached.items() if it.link.state()[1] != index]

    def check(self, program: Program, known: Iterable[Program]) -> list[int]:
        """Interfaces that have gone, or whose link something else took away; they are forgotten.

        The others carry this program now.
        """
        lost = []
        for index, it in list(self.attached.items()):
            _, alive = it.link.state()
            pinned = (self._root / f"{LINK}{index}").exists()
            if alive != index:
                self.detach(index)
                lost.append(index)
                continue
            if not pinned:
                it.link.pin(self._root / f"{LINK}{index}")
            self.renew(index, program, known)
        return lost

    def renew(self, index: int, program: Program, known: Iterable[Program]) -> None:
        """Let the interface carry this program instead of another one; ``known``: of ours, still open."""
        it = self.attached[index]
        number, _ = it.link.state()
        if number == program.id:
            return
        ours = next((before for before in known if before.id == number), None)
        old = ours or program_by_id(number)  # to open a program by its id takes CAP_SYS_ADMIN
        try:
            it.link.replace(program, old)
        except OSError as error:
            raise DataPlaneError(f"the XDP program of {it.name} cannot be replaced: {error.strerror}") from error
        finally:
            if ours is None:
                old.close()

    def close(self) -> None:
        """Let go of the links; they stay."""
        for it in self.attached.values():
            it.link.close()
        self.attached.clear()


def pinned_program(index: int) -> int:
    """Id of the program that a link of ours has on an interface; 0: there is none."""
    try:
        link = Link.at(pins.namespace_root() / f"{LINK}{index}")
    except FileNotFoundError:
        return 0
    try:
        program, alive = link.state()
    finally:
        link.close()
    return program if alive == index else 0


def _foreign(interface: str, number: int) -> str:
    try:
        program = program_by_id(number)
    except (DataPlaneError, UnsupportedFeature):
        what = f"program {number}"
    else:
        what = f"program {program.name!r} (id {number})"
        program.close()
    return (
        f"{interface} carries another XDP {what}, which stays untouched: remove it "
        f"(ip link set dev {interface} xdp off), or leave {interface} out of xdp.interfaces"
    )


def _mode_of(index: int) -> str:
    return NATIVE if attached_program(index, XDP_NATIVE) else GENERIC
