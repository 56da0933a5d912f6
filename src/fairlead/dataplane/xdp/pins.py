# SPDX-License-Identifier: Apache-2.0
"""Where things of ours are pinned, so that they outlive us: one directory per network namespace.

``/sys/fs/bpf/fairlead/<inode of the network namespace>/`` holds ``link-<interface index>``, what ``resolver`` pins, and
one numbered directory per generation: every map under its name, and ``program``, which is pinned last and so says that
it is complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fairlead.dataplane.xdp.interfaces import name_of
from fairlead.dataplane.xdp.libbpf.binding import mount_bpffs
from fairlead.errors import UnsupportedFeature

BPFFS = Path("/sys/fs/bpf")
HOME = "fairlead"
PROGRAM = "program"
LINK = "link-"
RESOLVER = "resolve-"  # pins of the tc program beside it
Event = Callable[[str, str, str], None]


def namespace_root() -> Path:
    """Where this network namespace pins."""
    return BPFFS / HOME / str(_inode("/proc/self/ns/net"))


def generations(root: Path) -> list[int]:
    """Numbers of the generations that are pinned, the latest first."""
    if not root.is_dir():
        return []
    return sorted((int(path.name) for path in root.iterdir() if path.name.isdecimal()), reverse=True)


def links(root: Path) -> Iterator[tuple[int, Path]]:
    """Indexes of the interfaces that links are pinned for, and these pins."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.name.startswith(LINK):
            yield int(path.name.removeprefix(LINK)), path


def unlink_links(root: Path) -> list[int]:
    """Remove the pins of all links, and so the program from these interfaces, unless somebody holds the links."""
    found = list(links(root))
    for _, path in found:
        path.unlink()
    return [index for index, _ in found]


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
    removed = [f"XDP program of interface {name_of(index)}" for index in unlink_links(root)]
    for path in root.glob(f"{RESOLVER}*"):  # after all of XDP, which counts on them
        path.unlink()
    removed += [f"maps and program ({len(list(path.iterdir()))} pins in {path})" for path in sorted(root.iterdir())]
    remove_tree(root)
    with contextlib.suppress(OSError):
        root.parent.rmdir()
    return removed


def remove_tree(path: Path) -> None:
    """Remove a directory of pins."""
    shutil.rmtree(path, ignore_errors=True)


def is_bpffs(path: Path) -> bool:
    """Whether the BPF file system is mounted there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == str(path) and right.split()[0] == "bpf":
            return True
    return False


def _inode(path: str) -> int:
    return Path(path).stat().st_ino
