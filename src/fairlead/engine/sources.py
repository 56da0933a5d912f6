# SPDX-License-Identifier: Apache-2.0
"""Reads configuration files, each exactly once: what was validated is what is applied (F50)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fairlead.config.load import Source
from fairlead.config.text import MAX_BYTES
from fairlead.errors import ConfigError, Problem


def read_sources(path: Path) -> tuple[Source, ...]:
    """The file at ``path`` and, in the order of their names, the ``conf.d/*.yaml`` beside it.

    Raises:
        ConfigError: A file cannot be read; names every one of them.
    """
    sources: list[Source] = []
    problems: list[Problem] = []
    for each in (path, *sorted((path.parent / "conf.d").glob("*.yaml"))):
        try:
            sources.append(Source(str(each), _read(each)))
        except OSError as error:
            problems.append(Problem(str(each), 0, 0, "", f"cannot be read: {error.strerror}"))
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(sources)


def _read(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO that nobody writes to must not stop the daemon.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file")
        return stream.read(MAX_BYTES + 1)  # one more than allowed, so that the loader sees that it is too long
