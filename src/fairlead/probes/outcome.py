# SPDX-License-Identifier: Apache-2.0
"""How an attempt fails: one exception inside this room, and the meaning of the kernel's error numbers.

Invariant: a failure that lies with this node is LOCAL_ERROR and is never blamed on the server.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from fairlead.model.health import AgentReport
from fairlead.model.reasons import DownReason

SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Passed:
    """What an attempt found that passed and has more to tell than its one line.

    Attributes:
        detail: One clean line for people.
        certificate_until: End of the server's certificate, in seconds since the Unix epoch, or None.
        report: What the agent on the server said, or None.
    """

    detail: str
    certificate_until: float | None = None
    report: AgentReport | None = None


class ProbeFailed(Exception):
    """The attempt is over without success; ``detail`` is one clean line for people."""

    def __init__(self, reason: DownReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


# What a system call on this node answers at once. Everything not listed is our own trouble: no descriptors, no
# memory, no such source address, forbidden by a local rule.
_AT_ONCE = {
    errno.ECONNREFUSED: DownReason.REFUSED,
    errno.ECONNRESET: DownReason.RESET,
    errno.EPIPE: DownReason.RESET,
    errno.EHOSTUNREACH: DownReason.UNREACHABLE,
    errno.EHOSTDOWN: DownReason.UNREACHABLE,
    errno.ENETUNREACH: DownReason.UNREACHABLE,
    errno.ETIMEDOUT: DownReason.TIMEOUT,
}

# What is found on the socket later came from the network: an RST, or an ICMP error. Linux turns ICMPv6
# "administratively prohibited" into EACCES and ICMP "protocol unreachable" into ENOPROTOOPT (net/ipv6/icmp.c,
# net/ipv4/icmp.c), so that what is not listed counts as unreachable.
_LATER = {
    errno.ECONNREFUSED: DownReason.REFUSED,
    errno.ECONNRESET: DownReason.RESET,
    errno.EPIPE: DownReason.RESET,
    errno.ETIMEDOUT: DownReason.TIMEOUT,
    errno.ENOBUFS: DownReason.LOCAL_ERROR,
    errno.ENOMEM: DownReason.LOCAL_ERROR,
    errno.ENETDOWN: DownReason.LOCAL_ERROR,
    errno.EADDRNOTAVAIL: DownReason.LOCAL_ERROR,
}


def refused_here(code: int, doing: str) -> ProbeFailed:
    """The failure of a system call that answered ``code`` at once while ``doing`` something."""
    return _failed(_AT_ONCE.get(code, DownReason.LOCAL_ERROR), code, doing)


def failed_there(code: int, doing: str) -> ProbeFailed:
    """The failure that the network reported with ``code`` while ``doing`` something."""
    return _failed(_LATER.get(code, DownReason.UNREACHABLE), code, doing)


def _failed(reason: DownReason, code: int, doing: str) -> ProbeFailed:
    whose = "this node: " if reason is DownReason.LOCAL_ERROR else ""
    return ProbeFailed(reason, f"{whose}{doing}: {os.strerror(code).lower()}")


def printable(text: str | bytes, limit: int = SHOWN_CHARACTERS) -> str:
    """``text`` from a stranger on one line: no control or direction characters, at most ``limit`` characters."""
    if isinstance(text, bytes | bytearray):
        text = text[: 4 * limit].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."
