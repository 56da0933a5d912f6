# SPDX-License-Identifier: Apache-2.0
"""The tc program that takes over packets whose neighbour the kernel does not know yet, so that none of them is lost.

A node that has just taken a VIP over knows none of its clients. Without this program (Linux before 6.6) the first
packets to each of them are used up to make the kernel ask for it, and TCP sends them again 200 ms later.

Invariant: an interface whose XDP program counts on this one carries it first and loses it last.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from fairlead.dataplane.xdp.libbpf.hooks import Link
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.pins import RESOLVER
from fairlead.errors import DataPlaneError, FairleadError

_LOOPBACK = 1


class Resolver:
    """The program on interfaces; pinned, so that it outlives the agent.

    Args:
        program: Its object file.
        root: Where to pin.
    """

    def __init__(self, program: Path, root: Path) -> None:
        self._object = program
        self._root = root
        self._loaded: LoadedObject | None = None
        self._links: dict[int, Link] = {}
        self._supported: bool | None = None

    def supported(self) -> bool:
        """Whether this kernel can carry it; found out by trying."""
        if self._supported is None:
            try:
                Link.attach_ingress(self._load().programs["resolve"], _LOOPBACK).close()
                self._supported = True
            except (OSError, FairleadError):
                self._supported = False
        return self._supported

    def keep(self, index: int) -> None:
        """Have it on an interface, if this kernel can.

        Raises:
            DataPlaneError: It cannot be attached there.
        """
        if not self.supported():
            return
        path = self._root / f"{RESOLVER}{index}-{self._version()}"
        if index not in self._links:
            with contextlib.suppress(FileNotFoundError):
                self._links[index] = Link.at(path)
        alive = index in self._links and self._links[index].state()[1] == index
        if alive and path.exists():
            return
        if not alive:
            try:
                fresh = Link.attach_ingress(self._load().programs["resolve"], index)
            except OSError as error:
                raise DataPlaneError(f"no tc program can be attached to interface {index}: {error.strerror}") from error
            self.forget(index)  # one of another version goes when this one is there
            self._links[index] = fresh
        self._links[index].pin(path)

    def forget(self, index: int) -> None:
        """The interface has gone, or is not ours any more."""
        for path in self._root.glob(f"{RESOLVER}{index}-*"):
            path.unlink()
        if index in self._links:
            self._links.pop(index).close()

    def close(self) -> None:
        """Let go; what is pinned stays."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _load(self) -> LoadedObject:
        if self._loaded is None:
            self._loaded = LoadedObject(self._object)
        return self._loaded

    def _version(self) -> str:
        return hashlib.blake2b(self._object.read_bytes(), digest_size=4).hexdigest()
