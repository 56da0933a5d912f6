# SPDX-License-Identifier: Apache-2.0
"""What of ours lives in the kernel: maps, the program, and its links to interfaces, pinned so that they outlive us.

``/sys/fs/bpf/fairlead/<inode of the network namespace>/`` holds ``link-<interface index>``, what ``resolver`` pins, and
one numbered directory per generation: every map under its name, and ``program``, which is pinned last and so says that
it is complete.

Invariants: an interface carries one program of ours, and goes from one to the next in one step; a program that is not
ours is never replaced; maps of the same layout go over from one generation to the next, with all that is in them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.libbpf import (
    XDP_GENERIC,
    XDP_NATIVE,
    BpfMap,
    Link,
    LoadedObject,
    Program,
    attached_program,
    map_definitions,
    mount_bpffs,
    program_by_id,
)
from fairlead.errors import DataPlaneError, UnsupportedFeature

BPFFS = Path("/sys/fs/bpf")
HOME = "fairlead"
PROGRAM = "program"
LINK = "link-"
RESOLVER = "resolve-"  # pins of the tc program beside it
NATIVE, GENERIC = "native", "generic"
Event = Callable[[str, str, str], None]

# Maps that only the agent uses: key size, value size, whether there is one row per server, service or listener.
AGENT_MAPS = {
    "names_meta": (4, 512),
    "names_server": (4, 320),
    "names_service": (4, 1024),
    "names_table": (4, 64),
    "names_listener": (24, 4),
}
# What stands for flows: never given up only because its size should be another.
FLOW_MAPS = frozenset({"flows4", "flows6", "details4", "details6"})
_SO_NETNS_COOKIE = 71
_JSON = json.JSONEncoder(separators=(",", ":"))
_NOT_NATIVE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.E2BIG, errno.ENOMEM, errno.ENODEV})


@dataclass(frozen=True, slots=True)
class Build:
    """What a generation is made with.

    Attributes:
        sizes: Entries of maps, by name; agent maps included.
        constants: Of the program.
        multi_buffer: Whether frames may have more than one buffer.
    """

    sizes: Mapping[str, int]
    constants: Mapping[str, int]
    multi_buffer: bool = False


@dataclass(slots=True)
class Attached:
    """One interface that carries our program."""

    name: str
    mode: str
    link: Link


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
        self.root = root or namespace_root()
        self.now: Generation | None = None
        self._before: list[Generation] = []  # still forwarding, until ``finish``
        self._complete = True
        self.attached: dict[int, Attached] = {}

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
        for number in self._numbers():
            if self.now is None:
                with contextlib.suppress(FileNotFoundError):
                    self.now = self._open(number)
            if self.now is None or self.now.number != number:
                remove_tree(self.root / str(number))
        if self.now is None:
            self._unlink_all()
            return False
        if not self._is_of_this_namespace():
            self.now.close()
            self.now = None
            self._unlink_all()
            remove_tree(self.root)
            return False
        self._adopt_links()
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

    def _adopt_links(self) -> None:
        for index, path in self._link_pins():
            link = Link.at(path)
            _, alive = link.state()
            if not alive:
                link.close()
                path.unlink()
                continue
            self.attached[index] = Attached(_name_of(index), _mode_of(index), link)
            self._renew(index)

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
        number = max([0, *self._numbers()]) + 1
        kept = self._kept(build)
        place = self.root / str(number)
        sizes = {
            name: kept[name].max_entries if name in kept else size
            for name, size in build.sizes.items()
            if name not in AGENT_MAPS
        }
        constants = dict(build.constants)
        constants["flow4_mask"], constants["flow6_mask"] = sizes["flows4"] - 1, sizes["flows6"] - 1
        reuse = {name: item for name, item in kept.items() if name not in AGENT_MAPS}
        fresh_sizes = {name: size for name, size in sizes.items() if name not in reuse}
        loaded = LoadedObject(
            self._object, constants=constants, max_entries=fresh_sizes, reuse=reuse, multi_buffer=build.multi_buffer
        )
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
        for index in list(self.attached):
            self._renew(index)
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
        if name in FLOW_MAPS and wanted != item.max_entries and item.max_entries > 1024:
            self._event(
                "flow_table_kept",
                name,
                f"keeps {item.max_entries} entries and so its flows; `fairlead cleanup` makes room for {wanted}",
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
        if index in self.attached:
            return
        tries = {NATIVE: (NATIVE,), GENERIC: (GENERIC,)}.get(mode, (NATIVE, GENERIC))
        link, used, why = None, "", ""
        for used in tries:
            flags = XDP_NATIVE if used == NATIVE else XDP_GENERIC
            try:
                link = Link.attach(self.now.program, index, flags)
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
        path = self.root / f"{LINK}{index}"
        path.unlink(missing_ok=True)
        link.pin(path)
        self.attached[index] = Attached(name, used, link)
        if used == GENERIC and mode != GENERIC:
            self._event(
                "xdp_generic",
                name,
                f"its driver has no native XDP ({why}); generic mode works, but at a fraction of the speed",
            )

    def detach(self, index: int) -> None:
        """Take our program from an interface."""
        found = self.attached.pop(index, None)
        (self.root / f"{LINK}{index}").unlink(missing_ok=True)
        if found is not None:
            found.link.close()

    def lost(self) -> list[str]:
        """Names of interfaces that should carry the program and do not."""
        return [it.name for index, it in self.attached.items() if it.link.state()[1] != index]

    def check_links(self) -> list[int]:
        """Interfaces that have gone, or whose link something else took away; they are forgotten."""
        lost = []
        for index, it in list(self.attached.items()):
            _, alive = it.link.state()
            pinned = (self.root / f"{LINK}{index}").exists()
            if alive != index:
                self.detach(index)
                lost.append(index)
                continue
            if not pinned:
                it.link.pin(self.root / f"{LINK}{index}")
            self._renew(index)
        return lost

    def _renew(self, index: int) -> None:
        """Let the interface carry the present program."""
        assert self.now is not None
        it = self.attached[index]
        number, _ = it.link.state()
        if number == self.now.program.id:
            return
        ours = next((before.program for before in self._before if before.program.id == number), None)
        old = ours or program_by_id(number)  # to open a program by its id takes CAP_SYS_ADMIN
        try:
            it.link.replace(self.now.program, old)
        except OSError as error:
            raise DataPlaneError(f"the XDP program of {it.name} cannot be replaced: {error.strerror}") from error
        finally:
            if ours is None:
                old.close()

    # Ending

    def let_go(self) -> None:
        """Leave all in the kernel."""
        for it in self.attached.values():
            it.link.close()
        self.attached.clear()
        for generation in [*self._before, *([self.now] if self.now is not None else [])]:
            generation.close()
        self._before.clear()
        self.now = None
        self._complete = True

    def remove(self) -> None:
        """Leave nothing in the kernel."""
        for index in list(self.attached):
            self.detach(index)
        self.let_go()
        self._unlink_all()
        remove_tree(self.root)
        with contextlib.suppress(OSError):
            self.root.parent.rmdir()

    def _numbers(self) -> list[int]:
        if not self.root.is_dir():
            return []
        return sorted((int(path.name) for path in self.root.iterdir() if path.name.isdecimal()), reverse=True)

    def _link_pins(self) -> Iterator[tuple[int, Path]]:
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(LINK):
                yield int(path.name.removeprefix(LINK)), path

    def _unlink_all(self) -> None:
        if self.root.is_dir():
            for _, path in self._link_pins():
                path.unlink()


def namespace_root() -> Path:
    """Where this network namespace pins."""
    return BPFFS / HOME / str(_inode("/proc/self/ns/net"))


def pinned_program(index: int) -> int:
    """Id of the program that a link of ours has on an interface; 0: there is none."""
    try:
        link = Link.at(namespace_root() / f"{LINK}{index}")
    except FileNotFoundError:
        return 0
    try:
        program, alive = link.state()
    finally:
        link.close()
    return program if alive == index else 0


def ensure_bpffs(event: Event) -> None:
    """Have the BPF file system where it belongs.

    Raises:
        UnsupportedFeature: It cannot be mounted.
    """
    if is_bpffs(BPFFS):
        return
    try:
        BPFFS.mkdir(exist_ok=True)
        mount_bpffs(BPFFS)
    except OSError as error:
        raise UnsupportedFeature(
            "XDP forwarding",
            f"the BPF file system is not mounted and cannot be ({error.strerror}): mount -t bpf bpf {BPFFS}",
        ) from error
    with contextlib.suppress(OSError):
        if _inode("/proc/self/ns/mnt") != _inode("/proc/1/ns/mnt"):
            event(
                "private_mount",
                str(BPFFS),
                "mounted in a mount namespace of its own (ip netns exec makes one): when the program ends, forwarding "
                "ends with it; start it with nsenter --net= or NetworkNamespacePath= instead",
            )


def cleanup(root: Path | None = None) -> list[str]:
    """Remove everything that was left in the kernel for this network namespace; what that was, in words."""
    root = root or namespace_root()
    if not root.is_dir():
        return []
    removed = []
    for path in sorted(root.iterdir()):
        if path.name.startswith(LINK):
            path.unlink()
            removed.append(f"XDP program of interface {_name_of(int(path.name.removeprefix(LINK)))}")
    for path in root.glob(f"{RESOLVER}*"):  # after all of XDP, which counts on them
        path.unlink()
    removed += [f"maps and program ({len(list(path.iterdir()))} pins in {path})" for path in sorted(root.iterdir())]
    remove_tree(root)
    with contextlib.suppress(OSError):
        root.parent.rmdir()
    return removed


def write_note(content: object, size: int) -> bytes:
    """JSON with its length in front, as the agent's maps hold it; text is taken to be JSON.

    Raises:
        DataPlaneError: It is too long.
    """
    raw = (content if isinstance(content, str) else _JSON.encode(content)).encode()
    if len(raw) > size - 2:
        raise DataPlaneError(f"a note of {len(raw)} bytes does not fit: {raw[:60]!r}...")
    return (struct.pack("<H", len(raw)) + raw).ljust(size, b"\0")


def read_note(raw: bytes) -> dict[str, Any]:
    """What ``write_note`` wrote; empty when it is damaged."""
    (length,) = struct.unpack_from("<H", raw)
    with contextlib.suppress(ValueError):
        found = json.loads(raw[2 : 2 + length])
        if isinstance(found, dict):
            return found
    return {}


def remove_tree(path: Path) -> None:
    """Remove a directory of pins."""
    shutil.rmtree(path, ignore_errors=True)


def interfaces() -> dict[str, int]:
    """Interfaces of this namespace: index by name."""
    return {name: index for index, name in socket.if_nameindex()}


def names(indexes: Iterable[int]) -> list[str]:
    """Names of interfaces."""
    return [_name_of(index) for index in indexes]


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


def is_bpffs(path: Path) -> bool:
    """Whether the BPF file system is mounted there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(path) and right.split()[0] == "bpf":
            return True
    return False


def _inode(path: str) -> int:
    return Path(path).stat().st_ino


def _look_for_notes(maps: Mapping[str, BpfMap]) -> None:
    """Raise FileNotFoundError unless the generation tells of itself."""
    if "names_meta" not in maps:
        raise FileNotFoundError("names_meta")


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"


def _mode_of(index: int) -> str:
    return NATIVE if attached_program(index, XDP_NATIVE) else GENERIC
