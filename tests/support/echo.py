# SPDX-License-Identifier: Apache-2.0
"""Who answers at a VIP, and for how long nobody did: a UDP service on each node, and a client that goes on asking."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from support.netns import Node
from support.wait import until

PORT = 7007
_SERVER = f"""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", {PORT}))
while True:
    data, sender = s.recvfrom(100)
    s.sendto(data + sys.argv[1].encode(), sender)
"""


@contextmanager
def echo(*nodes: Node) -> Iterator[None]:
    """The service on these nodes."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for node in nodes:
            command = node.command(sys.executable, "-S", "-c", _SERVER, f" {node.name}")
            started.append(subprocess.Popen(command))
            until(partial(_serves, node), 10, "the service answers")
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _serves(node: Node) -> bool:
    return f":{PORT} " in node.run("ss", "-Huln")


@dataclass
class Outcome:
    """What a client saw.

    Attributes:
        control_s: The longest time between two questions: what the machine itself has to answer for.
        gap_s: The longest time for which questions were lost: from the first lost one to the next that was answered.
        lost: Questions without an answer.
        last: Who answered last.
    """

    control_s: float
    gap_s: float
    lost: int
    last: str


def ask(client: Node, address: str, action: Callable[[], object], *, before_s: float = 0.3, after_s: float) -> Outcome:
    """Ask about every millisecond, do ``action`` meanwhile, and go on asking for ``after_s``."""
    with client.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sent: list[float] = []
    answered: dict[int, str] = {}
    began = time.monotonic()
    thread = threading.Thread(target=action)
    with sock:
        while (now := time.monotonic()) < began + before_s + after_s:
            if now > began + before_s and thread.ident is None:
                thread.start()
            with suppress(OSError):  # nobody answers for the address just now: it counts as lost
                sock.sendto(f"{len(sent)} ".encode(), (address, PORT))
            sent.append(now)
            _take(sock, answered, 0.001)
        _take(sock, answered, 0.2)
    thread.join()
    assert 0 in answered, "the service answered before the action"
    gap = lost = 0.0
    first_lost: float | None = None
    for number, moment in enumerate(sent):
        if number in answered:
            gap = max(gap, 0.0 if first_lost is None else moment - first_lost)
            first_lost = None
        else:
            lost += 1
            first_lost = moment if first_lost is None else first_lost
    assert first_lost is None or sent[-1] - first_lost < 0.1, "answered again at the end"
    return Outcome(max(b - a for a, b in pairwise(sent)), gap, int(lost), answered[max(answered)])


def _take(sock: socket.socket, answered: dict[int, str], wait_s: float) -> None:
    while select.select([sock], [], [], wait_s)[0]:
        try:
            number, _, name = sock.recv(100).decode().partition(" ")
        except OSError:  # an ICMP error of an earlier question
            continue
        answered[int(number)] = name.strip()
        wait_s = 0
