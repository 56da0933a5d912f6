# SPDX-License-Identifier: Apache-2.0
"""Tells the service manager how the daemon is: the datagram protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import socket


class ServiceManager:
    """Sends state to the socket named in NOTIFY_SOCKET; does nothing when there is none."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def send(self, *lines: str) -> None:
        """Send assignments such as ``READY=1``. A service manager that is away is no reason to stop."""
        if not self._address:
            return
        target = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.sendto("\n".join(lines).encode(), target)
