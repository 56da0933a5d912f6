# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of the unix socket, by the kernel's word (``SO_PEERCRED``, unix(7)).

Invariant: a peer that is not known only reads.
"""

from __future__ import annotations

import os
import socket
import struct
from asyncio import BaseTransport
from dataclasses import dataclass

_UCRED = struct.Struct("iII")  # pid_t, uid_t, gid_t


@dataclass(frozen=True, slots=True)
class Peer:
    """A client by its user, and the user the daemon runs as."""

    uid: int
    daemon_uid: int

    @property
    def operates(self) -> bool:
        """Whether it may change anything: root and the daemon's own user may."""
        return self.uid in {0, self.daemon_uid}


NOBODY = Peer(uid=65534, daemon_uid=0)


def peer_of(transport: BaseTransport) -> Peer:
    """The peer of a connection; its credentials are those of the moment it connected."""
    connection = transport.get_extra_info("socket")
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return NOBODY
    _, uid, _ = _UCRED.unpack(raw)
    return Peer(uid, os.geteuid())
