# SPDX-License-Identifier: Apache-2.0
"""dnsmasq as a real UDP server, and a client that asks it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Self

from fairlead.protocols.dns import decode_answer, encode_query
from support.processes import accepts, free_port
from support.wait import until

NAME = "example.org"


class Dnsmasq:
    """Answers ``NAME`` with its own address, by UDP and TCP."""

    def __init__(self, directory: Path, answer: str) -> None:
        self.answer, self.port = answer, free_port()
        self._log = directory / f"dnsmasq-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """ADDRESS:PORT."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
                    "--pid-file", "--user=root", "--bind-interfaces", "--listen-address=127.0.0.1",
                    f"--port={self.port}", f"--address=/{NAME}/{self.answer}",
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        until(lambda: accepts("127.0.0.1", self.port), 10, f"dnsmasq answers: {self._log.read_text()}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Resolver:
    """A client with one socket, as a stub resolver that keeps its port."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((host, port))
        self.socket.settimeout(1)
        self._identifier = 0

    def ask(self) -> str:
        """The address in the answer; empty when there was none within a second."""
        self._identifier += 1
        query = encode_query(self._identifier, NAME, "A")
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            self.socket.send(query)
            while (data := self.socket.recv(4096))[:2] != query[:2]:
                pass
            assert decode_answer(data, query).answers == 1
            return socket.inet_ntoa(data[-4:])
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
