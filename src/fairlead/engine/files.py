# SPDX-License-Identifier: Apache-2.0
"""The runtime directory of one daemon: its lock, and files that are replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from fairlead.errors import Conflict, FairleadError


def prepare_directory(path: Path) -> None:
    """Create the runtime directory with mode 0700, or check that the one there is ours.

    Raises:
        FairleadError: It cannot be made, is a link, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise FairleadError(
            f"cannot create the runtime directory {path}: {error.strerror}; "
            "choose another place with --socket PATH or FAIRLEAD_SOCKET"
        ) from error
    if not path.is_dir() or path.is_symlink() or found.st_uid != os.geteuid():
        raise FairleadError(f"{path} is not a directory of this user; remove it or choose another --socket")


class Lock:
    """One daemon per runtime directory: an flock that the kernel releases when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            Conflict: Another daemon holds it.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise Conflict(
                f"another fairlead (process {holder or 'unknown'}) runs with the same socket; "
                "use --socket PATH to run several side by side"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the lock up; the file stays, for its inode is the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` so that a reader, also after a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
