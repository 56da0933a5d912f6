# SPDX-License-Identifier: Apache-2.0
"""The ``http`` and ``https`` probes: one HTTP/1.1 request whose answer has the expected status and body.

Invariant: at most 64 kB of an answer are read, and no more of it than decides: without ``body`` the head is enough.
"""

from __future__ import annotations

import h11

from fairlead import __version__
from fairlead.model.health import ProbeTarget
from fairlead.model.pool import HttpExpectation, TlsSettings
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import Passed, ProbeFailed, printable
from fairlead.probes.stream import ByteStream, TcpStream, authority, destination
from fairlead.probes.tls import TlsStream, client_context, server_name

ANSWER_LIMIT_BYTES = 64 * 1024
SHOWN_BYTES = 64


async def http(target: ProbeTarget, deadline: Deadline) -> str:
    """Ask over plain TCP.

    Raises:
        ProbeFailed: No answer, or not the expected one.
    """
    expected = target.monitor.http or HttpExpectation()
    to = destination(target)
    stream = TcpStream(to, deadline)
    try:
        await stream.connect()
        return await _Exchange(stream, expected, deadline).run(authority(to, 80))
    finally:
        stream.close()


async def https(target: ProbeTarget, deadline: Deadline) -> Passed:
    """Ask over TLS.

    Raises:
        ProbeFailed: No connection, no handshake, no answer, or not the expected one.
    """
    expected = target.monitor.http or HttpExpectation()
    settings = target.monitor.tls or TlsSettings()
    to = destination(target)
    context = client_context(settings, ("http/1.1",))
    stream = TcpStream(to, deadline)
    try:
        await stream.connect()
        secure = TlsStream(stream, context, server_name(settings, expected.host, to), deadline)
        await secure.handshake()
        said = await _Exchange(secure, expected, deadline).run(authority(to, 443))
        return Passed(said, secure.certificate_until)
    finally:
        stream.close()


def _request(expected: HttpExpectation, host: str) -> h11.Request:
    """The request; a header named by the user replaces ours."""
    headers = {
        "host": ("Host", expected.host or host),
        "user-agent": ("User-Agent", f"fairlead/{__version__}"),
        "accept": ("Accept", "*/*"),
        "connection": ("Connection", "close"),
    }
    for name, _ in expected.headers:
        headers.pop(name.lower(), None)
    try:
        return h11.Request(
            method=expected.method,
            target=expected.path,
            headers=[(name.encode(), value.encode()) for name, value in (*headers.values(), *expected.headers)],
        )
    except (h11.LocalProtocolError, UnicodeError) as error:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"the request cannot be sent: {printable(str(error))}") from error


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_begin", "_closed", "_connection", "_deadline", "_expected", "_received", "_stream")

    def __init__(self, stream: ByteStream, expected: HttpExpectation, deadline: Deadline) -> None:
        self._stream = stream
        self._expected = expected
        self._deadline = deadline
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_LIMIT_BYTES)
        self._begin = b""
        self._received = 0
        self._closed = False

    async def run(self, host: str) -> str:
        self._deadline.doing = "HTTP answer"
        head = self._connection.send(_request(self._expected, host)) or b""
        self._connection.send(h11.EndOfMessage())
        await self._stream.send(head)
        status, phrase = await self._head()
        said = f"HTTP {status} {printable(phrase, 40)}".rstrip()
        if not any(low <= status <= high for low, high in self._expected.statuses):
            raise ProbeFailed(DownReason.BAD_STATUS, f"{said}, expected {_ranges(self._expected.statuses)}")
        if self._expected.body is not None and not await self._finds(self._expected.body.encode()):
            raise ProbeFailed(
                DownReason.BAD_BODY, f'{said}, but "{printable(self._expected.body)}" is not in the first 64 kB'
            )
        return said

    async def _head(self) -> tuple[int, bytes]:
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code, event.reason
            if not isinstance(event, h11.InformationalResponse):
                raise self._malformed()

    async def _finds(self, wanted: bytes) -> bool:
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            searched = max(0, len(body) - len(wanted) + 1)
            body += event.data
            if body.find(wanted, searched, ANSWER_LIMIT_BYTES) >= 0:
                return True
            if len(body) >= ANSWER_LIMIT_BYTES:
                return False
        return wanted == b""

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        """The next event of the answer; PAUSED when the server left HTTP."""
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise self._broken(error) from error
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            if self._received > 2 * ANSWER_LIMIT_BYTES:  # interim answers or chunk framing without end
                raise self._too_large()
            data = await self._stream.recv()
            self._received += len(data)
            self._closed = not data
            self._begin += data[: SHOWN_BYTES - len(self._begin)]
            if not self._begin.startswith(b"HTTP/"[: len(self._begin)]):
                raise self._malformed()  # h11 would wait for the end of a head that never comes
            self._connection.receive_data(data)

    def _broken(self, error: h11.RemoteProtocolError) -> ProbeFailed:
        if self._closed:
            when = "in the middle of it" if self._received else "before it"
            return ProbeFailed(DownReason.CLOSED, f"HTTP answer: the server closed the connection {when}")
        # h11's hint for a head or a line of chunk framing that outgrows its buffer
        return self._too_large() if error.error_status_hint == 431 else self._malformed()

    def _too_large(self) -> ProbeFailed:
        return ProbeFailed(DownReason.TOO_LARGE, "HTTP answer: over 64 kB and still not complete")

    def _malformed(self) -> ProbeFailed:
        begin = self._begin.splitlines()[0] if self._begin.strip() else self._begin
        return ProbeFailed(DownReason.MALFORMED, f'HTTP answer: not valid HTTP/1.1, begins "{printable(begin, 40)}"')


def _ranges(statuses: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in statuses)
