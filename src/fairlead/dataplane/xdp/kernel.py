# SPDX-License-Identifier: Apache-2.0
"""What of ours lives in the kernel: generations of maps and program, which outlive us.

Invariant: maps of the same layout go over from one generation to the next, with all that is in them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.dataplane.xdp import abi, pins
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject, map_definitions
from fairlead.dataplane.xdp.libbpf.programs import Program
from fairlead.dataplane.xdp.links import Links
from fairlead.dataplane.xdp.notes import AGENT_MAPS, read_note, write_note
from fairlead.dataplane.xdp.pins import PROGRAM, Event, remove_tree
from fairlead.dataplane.xdp.room import FLOW_MAPS, NO_FLOWS

# Constants of the programs that are the entries of a map, less one.
MASKS = {"block4_mask": "flows4", "block6_mask": "flows6", "touched_mask": "touched"}
_SO_NETNS_COOKIE = 71


@dataclass(frozen=True, slots=True)
class Build:
    """What a generation is made with.

    Attributes:
        sizes: Entries of maps, by name; agent maps included.
        constants: Of the program.
    """

    sizes: Mapping[str, int]
    constants: Mapping[str, int]


@dataclass(slots=True)
class Generation:
    """Maps and program that belong together."""

    number: int
    maps: dict[str, BpfMap]
    program: Program
    keeps: list[LoadedObject] = field(default_factory=list)

    def close(self) -> None:
        """Let go of all descriptors."""
        for item in self.maps.values():
            item.close()
        self.program.close()
        for loaded in self.keeps:
            loaded.close()


class Kernel:
    """The program and its maps in this network namespace.

    Args:
        program: Its object file.
        event: Called with a kind, a subject and a message of something people should know.
        root: Where to pin.
    """

    def __init__(self, program: Path, event: Event, root: Path | None = None) -> None:
        self._object = program
        self._event = event
        self.root = root or pins.namespace_root()
        self.links = Links(self.root, event)
        self.now: Generation | None = None
        self._before: list[Generation] = []  # still forwarding, until ``finish``
        self._complete = True

    @property
    def maps(self) -> dict[str, BpfMap]:
        """The maps in use."""
        assert self.now is not None
        return self.now.maps

    def adopt(self) -> bool:
        """Take over what an earlier agent left, if there is anything of use; the rest goes.

        Raises:
            UnsupportedFeature: The host cannot do it.
        """
        if not self.root.is_dir():
            return False
        for number in pins.generations(self.root):
            if self.now is None:
                with contextlib.suppress(FileNotFoundError):
                    self.now = self._open(number)
            if self.now is None or self.now.number != number:
                remove_tree(self.root / str(number))
        if self.now is None:
            pins.unlink_links(self.root)
            return False
        if not self._is_of_this_namespace():
            self.now.close()
            self.now = None
            pins.unlink_links(self.root)
            remove_tree(self.root)
            return False
        self.links.adopt(self.now.program)
        return True

    def _open(self, number: int) -> Generation:
        """A complete generation; FileNotFoundError when something is missing."""
        place = self.root / str(number)
        maps: dict[str, BpfMap] = {}
        program = Program.at(place / PROGRAM)
        try:
            for path in place.iterdir():
                if path.name != PROGRAM:
                    maps[path.name] = BpfMap.at(path)
            _look_for_notes(maps)
        except BaseException:
            program.close()
            for item in maps.values():
                item.close()
            raise
        return Generation(number, maps, program)

    def _is_of_this_namespace(self) -> bool:
        """Inode numbers of namespaces come again, cookies do not."""
        return self.meta().get("cookie") == _cookie()

    def meta(self) -> dict[str, Any]:
        """What the agent noted about this generation."""
        raw = self.maps["names_meta"].get(bytes(4))
        return read_note(raw) if raw is not None else {}

    @property
    def has_our_layout(self) -> bool:
        """Whether the maps in the kernel are laid out as this version's are."""
        return self.meta().get("abi") == abi.ABI and all(
            name in self.maps and (self.maps[name].key_size, self.maps[name].value_size) == sizes
            for name, sizes in AGENT_MAPS.items()
        )

    @property
    def is_current(self) -> bool:
        """Whether the program in the kernel is the one this version brings, with this version's maps."""
        return self.has_our_layout and self.meta().get("object") == _digest(self._object)

    @property
    def before(self) -> Generation | None:
        """The generation that forwards until ``finish``, when that is not the present one."""
        return self._before[-1] if self._before else None

    def fits(self, build: Build) -> bool:
        """Whether the present maps are large enough and the program was made with the same constants."""
        wanted = {name: value for name, value in build.constants.items() if not name.endswith("_mask")}
        return (
            self.now is not None
            and self.is_current
            and self.meta().get("constants") == wanted
            and all(self.maps[name].max_entries >= size for name, size in build.sizes.items())
        )

    def renew(self, build: Build, fill: Callable[[Mapping[str, BpfMap], frozenset[str]], None]) -> None:
        """Make a new generation: new program, maps that fit kept, others made anew and filled by ``fill``.

        ``fill`` gets all maps and the names of those that are new and empty. The old generation forwards on until
        ``finish``.

        Raises:
            UnsupportedFeature, DataPlaneError: It is not possible; nothing has changed.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = max([0, *pins.generations(self.root)]) + 1
        kept = self._kept(build)
        place = self.root / str(number)
        sizes = {
            name: kept[name].max_entries if name in kept else size
            for name, size in build.sizes.items()
            if name not in AGENT_MAPS
        }
        constants = dict(build.constants)
        constants |= {mask: sizes[name] - 1 for mask, name in MASKS.items()}
        reuse = {name: item for name, item in kept.items() if name not in AGENT_MAPS}
        fresh_sizes = {name: size for name, size in sizes.items() if name not in reuse}
        loaded = LoadedObject(self._object, constants=constants, max_entries=fresh_sizes, reuse=reuse)
        made: dict[str, BpfMap] = dict(loaded.maps)
        try:
            for name, (key, value) in AGENT_MAPS.items():
                if name in kept:
                    made[name] = BpfMap(os.dup(kept[name].descriptor))
                else:
                    made[name] = BpfMap.hash(name, key, value, build.sizes.get(name, 16))
            fill(made, frozenset(made.keys() - kept.keys()))
            meta = {
                "abi": abi.ABI,
                "object": _digest(self._object),
                "cookie": _cookie(),
                "constants": dict(build.constants),
            }
            made["names_meta"].put(bytes(4), write_note(meta, AGENT_MAPS["names_meta"][1]))
            program = loaded.programs["fairlead"]
            place.mkdir(mode=0o700)
            for name, item in made.items():
                item.pin(place / name)
        except BaseException:
            remove_tree(place)
            for name in made.keys() - loaded.maps.keys():
                made[name].close()
            loaded.close()
            raise
        if self.now is not None:
            self._before.append(self.now)
        self.now = Generation(number, made, program, [loaded])
        self._complete = False

    @property
    def is_finished(self) -> bool:
        """Whether the present generation is the one that forwards."""
        return self._complete

    def finish(self, forwarding: Callable[[], None] = lambda: None) -> None:
        """Let the present generation forward, call ``forwarding``, and end the generations before it."""
        if self.now is None or self._complete:
            return
        self.now.program.pin(self.root / str(self.now.number) / PROGRAM)
        self._complete = True
        for index in self.links.attached:
            self.links.renew(index, self.now.program, [it.program for it in self._before])
        forwarding()
        for before in self._before:
            before.close()
            remove_tree(self.root / str(before.number))
        self._before.clear()

    def _kept(self, build: Build) -> dict[str, BpfMap]:
        """Maps that go over as they are: same layout, large enough; flow tables whatever their size."""
        if self.now is None:
            return {}
        if not self.has_our_layout:
            return {}
        definitions = map_definitions(self._object)
        kept = {}
        for name, item in self.now.maps.items():
            if name in AGENT_MAPS:
                if item.max_entries >= build.sizes.get(name, 0):
                    kept[name] = item
            elif name in definitions and self._fits(name, item, definitions[name], build):
                kept[name] = item
        return kept

    def _fits(self, name: str, item: BpfMap, definition: tuple[tuple[int, int, int, int], int], build: Build) -> bool:
        layout, size = definition
        if item.layout != layout:
            return False
        wanted = build.sizes.get(name, size)
        places = FLOW_MAPS.get(name, 0)
        if wanted != item.max_entries and item.max_entries * places > NO_FLOWS:
            self._event(
                "flow_table_kept",
                name,
                f"keeps {item.max_entries * places} entries and so its flows; "
                f"`fairlead cleanup` makes room for {wanted * places}",
            )
            return True
        return item.max_entries >= wanted

    # Interfaces

    def attach(self, name: str, index: int, mode: str) -> None:
        """Let the program see what comes in by an interface; ``mode`` is auto, native or generic.

        Raises:
            DataPlaneError: Another program is there, or the mode cannot be had.
        """
        assert self.now is not None
        self.links.attach(self.now.program, name, index, mode)

    def check_links(self) -> list[int]:
        """Interfaces that have gone, or whose link something else took away; they are forgotten."""
        assert self.now is not None
        return self.links.check(self.now.program, [it.program for it in self._before])

    def lost(self) -> list[str]:
        """Names of interfaces that should carry the program and do not."""
        return self.links.lost()

    # Ending

    def let_go(self) -> None:
        """Leave all in the kernel."""
        self.links.close()
        for generation in [*self._before, *([self.now] if self.now is not None else [])]:
            generation.close()
        self._before.clear()
        self.now = None
        self._complete = True

    def remove(self) -> None:
        """Leave nothing in the kernel."""
        for index in list(self.links.attached):
            self.links.detach(index)
        self.let_go()
        pins.unlink_links(self.root)
        remove_tree(self.root)
        with contextlib.suppress(OSError):
            self.root.parent.rmdir()


def _look_for_notes(maps: Mapping[str, BpfMap]) -> None:
    """Raise FileNotFoundError unless the generation tells of itself."""
    if "names_meta" not in maps:
        raise FileNotFoundError("names_meta")


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
