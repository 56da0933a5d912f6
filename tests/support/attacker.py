# SPDX-License-Identifier: Apache-2.0
"""A hostile client with one address, run as a program: PORT SOURCE IDLE. Says "ready", and goes on until it is killed.

Slow readers ask for much and take nothing; slow writers send a byte now and then; others connect and say nothing.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import sys
import time

SLOW = 100


def connect(port: int, source: str, first: bytes = b"") -> socket.socket:
    s = socket.socket()
    s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    if first.startswith(b"GET /data"):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.bind((source, 0))
    with contextlib.suppress(ConnectionResetError):  # refused by a limit
        s.connect(("127.0.0.1", port))
        s.sendall(first)
    return s


def main() -> None:
    port, source, idle = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    readers = [connect(port, source, b"GET /data/large HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(SLOW)]
    writers = [connect(port, source, b"POST / HTTP/1.1\r\nHost: x\r\nX: ") for _ in range(SLOW)]
    silent = [connect(port, source) for _ in range(idle)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while readers and len(silent) == idle:
        for s in writers:
            with contextlib.suppress(OSError):
                s.send(b"x")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
