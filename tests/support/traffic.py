# SPDX-License-Identifier: Apache-2.0
"""Clients that ask all the time and remember how each request ended."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it began and ended (monotonic seconds), who answered, or why nobody did."""

    began: float
    ended: float
    server: str | None
    error: str | None


def ask(connection: socket.socket, host: str, *, close: bool) -> str:
    """One HTTP request on an open connection; returns the body, which is the server's name."""
    end = "Connection: close\r\n" if close else ""
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{end}\r\n".encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += _some(connection)
    return body.decode().strip()


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("closed before the answer was complete")
    return data


class Traffic:
    """Threads that send requests to one address until told to stop.

    Args:
        long: Keep each connection; otherwise every request has its own.
        pause_s: Between the requests of one thread.
    """

    def __init__(self, host: str, port: int, *, threads: int = 4, long: bool = False, pause_s: float = 0.002) -> None:
        self._address = (host, port)
        self._long = long
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self._answers: list[Answer] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    @property
    def answers(self) -> list[Answer]:
        """All requests that have ended so far."""
        return list(self._answers)

    def failures(self, after: float = 0.0) -> list[Answer]:
        """Requests that failed and began after the monotonic moment ``after``."""
        return [answer for answer in self.answers if answer.error and answer.began >= after]

    def served_by(self, server: str, after: float) -> list[Answer]:
        """Requests that ``server`` answered and that began after the monotonic moment ``after``."""
        return [answer for answer in self.answers if answer.server == server and answer.began >= after]

    def _run(self) -> None:
        connection: socket.socket | None = None
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if connection is None:
                    connection = socket.create_connection(self._address, timeout=5)
                name = ask(connection, "test", close=not self._long)
                self._answers.append(Answer(began, time.monotonic(), name, None))
                failed = False
            except OSError as error:
                self._answers.append(Answer(began, time.monotonic(), None, repr(error)))
                failed = True
            if connection is not None and (failed or not self._long):
                connection.close()
                connection = None
            self._stop.wait(self._pause_s)
        if connection is not None:
            connection.close()
