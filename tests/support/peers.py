# SPDX-License-Identifier: Apache-2.0
"""Clients and servers that a test drives by hand, socket by socket."""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import Self


class Server:
    """A listening socket that the test drives by hand, one accepted connection after the other."""

    def __init__(self, host: str = "127.0.0.1", *, backlog: int = 128, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((host, port))
        self.socket.listen(backlog)
        self.socket.settimeout(10)
        self.where = self.socket.getsockname()[:2]
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        s, _ = self.socket.accept()
        s.settimeout(10)
        self.accepted.append(s)
        return s

    def waiting(self) -> bool:
        """Whether a connection is in the queue."""
        self.socket.setblocking(False)
        try:
            s, _ = self.socket.accept()
        except BlockingIOError:
            return False
        else:
            s.settimeout(10)
            self.accepted.append(s)
            return True
        finally:
            self.socket.settimeout(10)

    def close(self) -> None:
        for s in self.accepted:
            s.close()
        self.accepted.clear()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Datagrams:
    """A UDP socket that the test drives by hand, as server or as client."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, port))
        self.socket.settimeout(10)
        self.where = self.socket.getsockname()[:2]
        self.last = ("", 0)  # who sent what was received last

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self.socket.sendto(data, to)

    def receive(self) -> bytes:
        data, sender = self.socket.recvfrom(65536)
        self.last = sender[:2]
        return data

    def answer(self, data: bytes) -> None:
        """To whoever sent what was received last."""
        self.socket.sendto(data, self.last)

    def waiting(self) -> bool:
        """Whether something can be received."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_all(s: socket.socket) -> bytes:
    """Everything up to the FIN; ConnectionResetError on an RST."""
    parts = []
    while part := s.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_exactly(s: socket.socket, n: int) -> bytes:
    """The next n bytes, less only when the peer ends before."""
    data = b""
    while len(data) < n and (part := s.recv(n - len(data))):
        data += part
    return data


def was_reset(s: socket.socket) -> bool:
    """Whether the connection ends by RST (waits for its end)."""
    try:
        read_all(s)
    except ConnectionResetError:
        return True
    return False


def reset(s: socket.socket) -> None:
    """Close with an RST."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def reset_after_end(s: socket.socket) -> bool:
    """Whether an RST arrives on a connection whose peer has sent FIN before."""
    poll = select.poll()
    poll.register(s, 0)
    return bool(poll.poll(10_000)) and s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
