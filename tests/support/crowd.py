# SPDX-License-Identifier: Apache-2.0
"""A crowd of TCP connections that exchange numbered messages without end, and what became of them.

Run as a program it is one side: ``serve PORT NAME`` or ``ask HOST PORT CONTROL RATE SOURCE=COUNT...``. Both sides ask
for real-time priority: they stand for other machines, which are not slow because the ones under test are busy. And as
that is not all that makes a busy machine slow, some connections lead to a control, past what is tested: for how long
nobody answered there is what the machine itself has to answer for.

A connection has one message under way at a time. It is lost when it is reset or closed, gets a wrong answer, or
still waits for one at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

MESSAGE = struct.Struct("!Q")
NAME_BYTES = 4
ANSWER = MESSAGE.size + NAME_BYTES
STEP_S = 0.002  # between bundles of messages
LATE_S = 0.15  # longer than any answer takes that needed no packet twice: the smallest retransmission timeout is 0.2 s
PATIENCE_S = 15.0  # for the last answers: TCP doubles its timeout each time
CONTROL, CONTROL_RATE = 20, 500  # connections to the control, and their messages a second
BATCH = 50  # connections that are opened at once


@dataclass(frozen=True, slots=True)
class Phase:
    """What happened since the last one was asked for.

    Attributes:
        connections: Alive now.
        lost: Why others are not, since the beginning.
        sent, answered: Messages.
        late: Answers that took longer than 150 ms: a packet had to be sent again.
        gap_ms: The longest time for which there were questions and none of them was answered.
        gap_at_ms: When that was, from the beginning of the phase.
        control_ms: The same of the control.
        silence_ms: The longest time for which one connection waited for an answer.
        servers: Connections by the name of the server that answered last.
        moved: Connections that were answered by two servers, since the beginning.
    """

    connections: int
    lost: Mapping[str, int]
    sent: int
    answered: int
    late: int
    gap_ms: float
    gap_at_ms: float
    control_ms: float
    silence_ms: float
    servers: Mapping[str, int]
    moved: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost and not self.moved


class Crowd:
    """The asking side, driven by a test; use ``crowd()``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def phase(self) -> Phase:
        """What happened so far; another phase begins."""
        return self._say("phase")

    def stop(self) -> Phase:
        """Send no more, wait for the last answers, and tell."""
        return self._say("stop")

    def _say(self, word: str) -> Phase:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        return Phase(**json.loads(self.hear()))

    def hear(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the crowd is gone"
        return line


@contextlib.contextmanager
def crowd(
    command: Iterable[str], target: tuple[str, int], control: str, sources: Mapping[str, int], rate: int = 2000
) -> Iterator[Crowd]:
    """Connections to ``target`` that are all established when the block begins.

    Args:
        command: What runs a program on the client.
        target: An IPv4 address and a port.
        control: Where the same port is answered without what is tested.
        sources: How many come from which address of the client.
        rate: Messages a second, all together.
    """
    wanted = [f"{source}={count}" for source, count in sources.items()]
    process = subprocess.Popen(
        [*command, sys.executable, "-S", __file__, "ask", target[0], str(target[1]), control, str(rate), *wanted],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        made = Crowd(process)
        assert made.hear() == "ready\n"
        yield made
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def serving(command: Iterable[str], port: int, name: str) -> Iterator[None]:
    """The answering side on a server."""
    process = subprocess.Popen(
        [*command, sys.executable, "-S", __file__, "serve", str(port), name], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@dataclass(slots=True)
class _Figures:
    sent: int = 0
    answered: int = 0
    late: int = 0
    began: float = field(default_factory=time.monotonic)
    gap_s: float = 0.0
    gap_at: float = 0.0
    silence_s: float = 0.0
    asked_at: float = 0.0  # of the first message since the last answer, 0 when there is none

    def gap_ms(self, now: float) -> float:
        """Up to now."""
        return round(max(self.gap_s, now - (self.asked_at or now)) * 1000, 1)

    def answer(self, took_s: float, now: float) -> None:
        """One more."""
        self.answered += 1
        self.late += took_s > LATE_S
        self.silence_s = max(self.silence_s, took_s)
        if self.asked_at and now - self.asked_at > self.gap_s:
            self.gap_s, self.gap_at = now - self.asked_at, self.asked_at
        self.asked_at = 0.0


@dataclass(slots=True)
class _Lane:
    """Connections to one target: those that have no message under way, the longest idle one first."""

    rate: int
    idle: deque[_Connection] = field(default_factory=deque)
    figures: _Figures = field(default_factory=_Figures)

    def renew(self) -> _Figures:
        """The figures so far; others begin."""
        before, self.figures = self.figures, _Figures(asked_at=self.figures.asked_at)
        return before


@dataclass(slots=True)
class _Connection:
    """``sent_at``: of the message under way, 0 while there is none."""

    sock: socket.socket
    lane: _Lane
    sent_at: float = 0.0
    number: int = 0
    server: str = ""
    heard: bytes = b""


class _Asker:
    def __init__(self, rate: int) -> None:
        self._tested, self._control = _Lane(rate), _Lane(CONTROL_RATE)
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._lost: Counter[str] = Counter()
        self._moved: set[int] = set()

    def connect(self, target: tuple[str, int], sources: list[str], *, control: bool = False) -> None:
        """Connections to ``target``, from ``sources``."""
        lane = self._control if control else self._tested
        for first in range(0, len(sources), BATCH):
            batch = []
            for source in sources[first : first + BATCH]:
                sock = socket.socket()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(0)
                sock.bind((source, 0))
                with contextlib.suppress(BlockingIOError):
                    sock.connect(target)
                batch.append(sock)
            for sock in batch:
                select.select([], [sock], [], 10)
                sock.getpeername()  # raises when it is not connected
                connection = _Connection(sock, lane)
                self._by_fd[sock.fileno()] = connection
                lane.idle.append(connection)
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Until it is told to stop."""
        stdin = sys.stdin.fileno()
        self._epoll.register(stdin, select.EPOLLIN)
        _say("ready")
        stop_at = None
        began = due_at = time.monotonic()
        while True:
            now = time.monotonic()
            if stop_at is None and now >= due_at:
                for lane in (self._tested, self._control):
                    self._send(lane, min(int((now - began) * lane.rate), 4 * int(lane.rate * STEP_S)), now)
                began, due_at = now, now + STEP_S
            for fd, _ in self._epoll.poll(0.01 if stop_at else max(0.0, due_at - now)):
                if fd != stdin:
                    self._receive(self._by_fd[fd])
                elif sys.stdin.readline() == "phase\n":
                    self._tell()
                else:
                    stop_at = time.monotonic()
                    self._epoll.unregister(stdin)
            if stop_at is not None and self._has_ended(stop_at):
                self._tell()
                return

    def _has_ended(self, stop_at: float) -> bool:
        waiting = [it for it in self._by_fd.values() if it.sent_at and it.lane is self._tested]
        if waiting and time.monotonic() < stop_at + PATIENCE_S:
            return False
        for connection in waiting:
            self._lose(connection, "silent")
        return True

    def _send(self, lane: _Lane, count: int, now: float) -> None:
        for _ in range(min(count, len(lane.idle))):
            connection = lane.idle.popleft()
            connection.number += 1
            connection.sent_at = now
            try:
                connection.sock.send(MESSAGE.pack(connection.number))
                lane.figures.sent += 1
                lane.figures.asked_at = lane.figures.asked_at or now
            except OSError as error:
                self._lose(connection, error)

    def _receive(self, connection: _Connection) -> None:
        try:
            part = connection.sock.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, error)
            return
        if not part:
            self._lose(connection, "closed")
            return
        connection.heard += part
        if len(connection.heard) < ANSWER:
            return
        (number,), name = MESSAGE.unpack_from(connection.heard), connection.heard[MESSAGE.size :].decode().strip()
        if number != connection.number or len(connection.heard) != ANSWER:
            self._lose(connection, "wrong answer")
            return
        if connection.server not in {"", name}:
            self._moved.add(id(connection))
        now = time.monotonic()
        connection.lane.figures.answer(now - connection.sent_at, now)
        connection.server, connection.heard, connection.sent_at = name, b"", 0.0
        connection.lane.idle.append(connection)

    def _lose(self, connection: _Connection, why: OSError | str) -> None:
        fd = connection.sock.fileno()
        self._lost[why if isinstance(why, str) else os.strerror(why.errno or 0)] += 1
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        with contextlib.suppress(ValueError):
            connection.lane.idle.remove(connection)
        connection.sock.close()

    def _tell(self) -> None:
        now, figures, control = time.monotonic(), self._tested.renew(), self._control.renew()
        tested = [it for it in self._by_fd.values() if it.lane is self._tested]
        waiting = [now - it.sent_at for it in tested if it.sent_at]
        _say(
            json.dumps({
                "connections": len(tested),
                "lost": self._lost,
                "sent": figures.sent,
                "answered": figures.answered,
                "late": figures.late,
                "gap_ms": figures.gap_ms(now),
                "gap_at_ms": round((figures.gap_at - figures.began) * 1000),
                "control_ms": control.gap_ms(now),
                "silence_ms": round(max([figures.silence_s, *waiting]) * 1000, 1),
                "servers": Counter(it.server for it in tested),
                "moved": len(self._moved),
            })
        )  # fmt: skip


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _serve(port: int, name: bytes) -> None:
    listener = socket.create_server(("", port), backlog=1024)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    _say("ready")
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        peer, _ = listener.accept()
                        peer.setblocking(False)
                        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        peers[peer.fileno()] = peer
                        epoll.register(peer.fileno(), select.EPOLLIN)
                continue
            peer = peers[fd]
            try:
                data = peer.recv(4096)
                if data:
                    chunks = (data[at : at + MESSAGE.size] for at in range(0, len(data), MESSAGE.size))
                    peer.send(b"".join(chunk + name for chunk in chunks))
                    continue
            except OSError:
                pass
            epoll.unregister(fd)
            peers.pop(fd).close()


def main(role: str, *arguments: str) -> None:
    """One side."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    if role == "serve":
        _serve(int(arguments[0]), arguments[1].encode().ljust(NAME_BYTES)[:NAME_BYTES])
        return
    host, port, control, rate, *wanted = arguments
    asker = _Asker(int(rate))
    counts = (pair.split("=") for pair in wanted)
    asker.connect((host, int(port)), [source for source, count in counts for _ in range(int(count))])
    asker.connect((control, int(port)), [""] * CONTROL, control=True)
    asker.run()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
