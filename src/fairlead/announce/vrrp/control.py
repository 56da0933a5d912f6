# SPDX-License-Identifier: Apache-2.0
"""The process's side of the control socket: one agent at a time, the newest; messages of ``announce.base``.

Invariant: what happened while no agent listened is kept, bounded, for the next one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from fairlead.announce.base import MESSAGE_LIMIT, Event, encode

KEPT_EVENTS = 500
_CREDENTIALS = struct.Struct("=iII")


class Control:
    """Serves ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        path.unlink(missing_ok=True)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(4)
        self._peer: socket.socket | None = None
        self._events: deque[tuple[float, Event]] = deque(maxlen=KEPT_EVENTS)
        self._told = False

    def filenos(self) -> tuple[int, ...]:
        """Of the sockets that may have something to read."""
        return (self._listener.fileno(), *((self._peer.fileno(),) if self._peer is not None else ()))

    def accept(self) -> bool:
        """Take a new agent if one waits; it replaces the one before. True when one came."""
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return False
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            peer.close()
            return False
        peer.setblocking(False)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_LIMIT)
        self.hang_up()
        self._peer = peer
        return True

    def receive(self) -> list[bytes]:
        """Every message that waits."""
        messages: list[bytes] = []
        while self._peer is not None:
            try:
                message = self._peer.recv(MESSAGE_LIMIT)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            if not message:
                self.hang_up()
                break
            messages.append(message)
        return messages

    def send(self, message: bytes) -> bool:
        """Tell the agent; False when there is none that listens. An agent that does not read never makes us wait."""
        if self._peer is None:
            return False
        try:
            self._peer.send(message)
        except BlockingIOError:
            return False
        except OSError:
            self.hang_up()
            return False
        return True

    def tell(self, event: Event) -> None:
        """Keep ``event`` until an agent has it."""
        self._events.append((time.monotonic(), event))
        self._told = True
        self.flush()

    def take_told(self) -> bool:
        """Whether something happened since the last call."""
        told, self._told = self._told, False
        return told

    def flush(self) -> None:
        """Send what was kept."""
        while self._events:
            at, event = self._events[0]
            if not self.send(encode("event", replace(event, ago_s=time.monotonic() - at))):
                return
            self._events.popleft()

    def hang_up(self) -> None:
        """Let the agent go."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def close(self) -> None:
        """Stop serving."""
        self.hang_up()
        self._listener.close()
        self._path.unlink(missing_ok=True)
