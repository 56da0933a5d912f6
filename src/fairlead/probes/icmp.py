# SPDX-License-Identifier: Apache-2.0
"""The ``icmp`` probe: an echo reply passes.

A ping socket is tried first: it needs no privilege where ``net.ipv4.ping_group_range`` allows it, and sees its own
replies alone. A raw socket (CAP_NET_RAW) is the fallback.
"""

from __future__ import annotations

import secrets
import socket
import struct

from fairlead.model.health import ProbeTarget
from fairlead.model.reasons import DownReason
from fairlead.probes.datagram import Datagram
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed
from fairlead.probes.stream import Destination, destination
from fairlead.protocols.icmp import REPLY_4, REPLY_6, echo_request, is_echo_reply, without_ipv4_header

_ICMP_FILTER = 1  # linux/icmp.h, level SOL_RAW; a set bit blocks the type
_ICMP6_FILTER = 1  # linux/icmpv6.h, level IPPROTO_ICMPV6
_SOL_RAW = 255


async def icmp(target: ProbeTarget, deadline: Deadline) -> str:
    """Ping once.

    Raises:
        ProbeFailed: No reply, an ICMP error, or this node may not ping.
    """
    to = destination(target)
    version = 6 if to.family is socket.AF_INET6 else 4
    payload = secrets.token_bytes(16)
    deadline.doing = "echo reply"
    ping, raw = _open(to, deadline)
    try:
        ping.send(echo_request(version, secrets.randbits(16), payload))
        while True:
            message = await ping.recv()
            if raw and version == 4:
                message = without_ipv4_header(message)
            if is_echo_reply(version, message, payload):
                return "echo reply"
    finally:
        ping.close()


def _open(to: Destination, deadline: Deadline) -> tuple[Datagram, bool]:
    """A socket for echo, and whether it is a raw one."""
    protocol = socket.IPPROTO_ICMPV6 if to.family is socket.AF_INET6 else socket.IPPROTO_ICMP
    try:
        return Datagram(to, deadline, socket.SOCK_DGRAM, protocol), False
    except ProbeFailed as failure:
        if failure.reason is not DownReason.LOCAL_ERROR:
            raise
    try:
        ping = Datagram(to, deadline, socket.SOCK_RAW, protocol)
    except ProbeFailed as failure:
        if failure.reason is not DownReason.LOCAL_ERROR:
            raise
        raise ProbeFailed(
            DownReason.LOCAL_ERROR,
            f"{failure.detail}; ping needs a group within net.ipv4.ping_group_range, or CAP_NET_RAW",
        ) from failure
    _only_replies(ping.sock, to)
    return ping, True


def _only_replies(sock: socket.socket, to: Destination) -> None:
    """Spare this process the other ICMP of the host: every raw socket gets a copy of all that its peer sends."""
    if to.family is socket.AF_INET6:
        blocked = bytearray(b"\xff" * 32)
        word = REPLY_6 // 32
        struct.pack_into("=I", blocked, 4 * word, ~(1 << REPLY_6 % 32) & 0xFFFFFFFF)
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
    else:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << REPLY_4) & 0xFFFFFFFF))
