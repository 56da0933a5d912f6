# SPDX-License-Identifier: Apache-2.0
"""A connected datagram socket of one attempt: answers of the server alone, and its ICMP errors."""

from __future__ import annotations

import errno
import socket

from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, failed_there, refused_here
from fairlead.probes.stream import Destination, open_socket, refuse_own_vip

_ERRORS = {  # linux/in.h, linux/in6.h: also "host unreachable" is told, not only "port unreachable"
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}


class Datagram:
    """A socket connected to ``to``; close it in any case.

    Raises:
        ProbeFailed: There is no way to the server, or this node cannot send.
    """

    __slots__ = ("_deadline", "sock")

    def __init__(
        self, to: Destination, deadline: Deadline, kind: socket.SocketKind = socket.SOCK_DGRAM, protocol: int = 0
    ) -> None:
        self._deadline = deadline
        self.sock = open_socket(to, kind, protocol)
        try:
            self.sock.setsockopt(*_ERRORS[to.family], 1)
            self.sock.connect((to.host, to.port))
        except OSError as error:
            self.close()
            raise refused_here(error.errno or errno.EIO, "connect") from error
        try:
            refuse_own_vip(self.sock, to)
        except ProbeFailed:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send one datagram.

        Raises:
            ProbeFailed: It could not be sent.
        """
        try:
            self.sock.send(data)
        except OSError as error:
            raise refused_here(error.errno or errno.EIO, "send") from error

    async def recv(self) -> bytes:
        """The next datagram.

        Raises:
            ProbeFailed: An ICMP error came, or nothing until the deadline.
        """
        while True:
            await self._deadline.readable(self.sock.fileno())
            try:
                return self.sock.recv(65535)
            except BlockingIOError:
                continue
            except OSError as error:
                raise failed_there(error.errno or errno.EIO, self._deadline.doing) from error
