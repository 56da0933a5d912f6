# SPDX-License-Identifier: Apache-2.0
"""What a client on a node asks, and what it is answered."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

from support.netns import Node


def http_from(client: Node, port: int, host: str, at: int) -> str:
    """What an HTTP server at ``host``:``at`` answers a client that connects from this port; then the client resets."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with client.inside(), socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.settimeout(5)
        sock.bind(("", port))
        sock.connect((host, at))
        sock.send(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer.partition(b"\r\n\r\n")[2].decode()


def avoids(client: Node, ports: Iterable[int], vip: str, at: int, name: str) -> bool:
    """Whether no connection from these ports gets to the server of this name, or is refused."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        return all(http_from(client, port, vip, at).split()[0] != name for port in ports)
    return False


def echo_asked(client: Node, host: str) -> bool:
    """Whether ``host`` answers an ICMP echo request."""
    six = ":" in host
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    client.run("sysctl", "-q", "-w", "net.ipv4.ping_group_range=0 0")
    with client.inside(), socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(2)
        sock.connect((host, 0))
        sock.send(bytes((128 if six else 8, 0, 0, 0, 0, 0, 0, 7)) + b"payload")
        with contextlib.suppress(TimeoutError):
            return sock.recv(1500).endswith(b"payload")
    return False


def udp_ask(client: Node, host: str, port: int, data: bytes, timeout_s: float = 3.0) -> bytes:
    """What a datagram is answered with; empty when it is not."""
    with client.inside(), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((host, port))
        sock.send(data)
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535)
    return b""
