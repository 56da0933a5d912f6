# SPDX-License-Identifier: Apache-2.0
"""The verbs that run in this process instead of asking a daemon; the composition root fills them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.model.configuration import Configuration
    from fairlead.model.host import Finding


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``fairlead run`` was asked for.

    Attributes:
        file: The configuration, or None when ``listen`` and ``servers`` describe the only service.
        listen: ADDRESS:PORT, as typed.
        servers: ADDRESS:PORT, as typed.
        socket: From ``--socket`` or FAIRLEAD_SOCKET; None leaves it to the configuration and the default.
    """

    file: Path | None
    listen: tuple[str, ...]
    servers: tuple[str, ...]
    socket: Path | None


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What ``fairlead demo`` was asked for; ``socket`` None lets the demonstration choose its own."""

    listen: str
    servers: int
    socket: Path | None


@dataclass(frozen=True, slots=True)
class LocalVerbs:
    """One callable per verb.

    Attributes:
        run: Runs the daemon until it is told to stop; the exit code.
        demo: Runs the demonstration until it is told to stop; the exit code.
        check: Loads a file and returns what it says; raises ConfigError.
        cleanup: Removes what the daemon with this socket left in the kernel; what that was, in words.
        doctor: Examines this host for a configuration, as a balancer, or (True) as a real server.
    """

    run: Callable[[RunOptions], int]
    demo: Callable[[DemoOptions], int]
    check: Callable[[Path], Configuration]
    cleanup: Callable[[Path], list[str]]
    doctor: Callable[[Configuration, bool], Sequence[Finding]]
