# SPDX-License-Identifier: Apache-2.0
"""The ``tcp`` probe, and what every probe over TCP shares: errors, overrides, deadline, clean end."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
from ipaddress import ip_address

import pytest

from fairlead.model.pool import MonitorType
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, failed_there, printable, refused_here
from fairlead.probes.registry import probe
from fairlead.probes.stream import RECEIVED_LIMIT_BYTES, TcpStream, destination
from support.processes import free_port
from support.servers import deaf_listener, descriptors, serving, silent, target_at


async def test_a_listener_passes() -> None:
    async with serving(silent) as port:
        result = await probe(target_at(port, type=MonitorType.TCP))
    assert (result.passed, result.reason, result.detail) == (True, None, "connected")
    assert 0 < result.duration_s < 1


async def test_ipv6_passes() -> None:
    async with serving(silent, "::1") as port:
        assert (await probe(target_at(port, "::1", type=MonitorType.TCP))).passed


async def test_a_closed_port_refuses() -> None:
    result = await probe(target_at(free_port(), type=MonitorType.TCP))
    assert (result.passed, result.reason) == (False, DownReason.REFUSED)
    assert result.detail == "connect: connection refused"


async def test_a_listener_that_stopped_accepting_times_out() -> None:
    with deaf_listener() as port:
        started = time.monotonic()
        result = await probe(target_at(port, type=MonitorType.TCP, timeout_s=0.2))
    assert result.reason is DownReason.TIMEOUT
    assert result.detail == "connect took longer than 0.2 s"
    assert 0.2 <= time.monotonic() - started < 10


async def test_it_ends_with_a_reset_and_leaves_no_time_wait() -> None:
    ends: asyncio.Queue[type[BaseException] | None] = asyncio.Queue()

    async def watch(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            ends.put_nowait(None)
        except ConnectionResetError as error:
            ends.put_nowait(type(error))

    async with serving(watch) as port:
        await probe(target_at(port, type=MonitorType.TCP))
        assert await asyncio.wait_for(ends.get(), 5) is ConnectionResetError


async def test_it_does_not_take_itself_for_the_server() -> None:
    """A connect to a closed port of this host can meet its own SYN: forced here by the source port."""
    port = free_port()

    class Bound(socket.socket):
        def connect_ex(self, address: object) -> int:
            self.bind(("127.0.0.1", port))
            return super().connect_ex(address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairlead.probes.stream.socket.socket", Bound)
        result = await probe(target_at(port, type=MonitorType.TCP))
    assert (result.reason, result.detail) == (DownReason.REFUSED, "connect: nobody listens (the probe met itself)")


async def test_port_and_address_of_the_monitor_win() -> None:
    async with serving(silent) as port:
        target = target_at(1, "127.0.0.9", type=MonitorType.TCP, port=port, address=ip_address("127.0.0.1"))
        assert (await probe(target)).passed


async def test_it_comes_from_the_source_address() -> None:
    peers: asyncio.Queue[str] = asyncio.Queue()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.put_nowait(writer.get_extra_info("peername")[0])

    async with serving(note) as port:
        assert (await probe(target_at(port, type=MonitorType.TCP, source=ip_address("127.0.0.7")))).passed
        assert await asyncio.wait_for(peers.get(), 5) == "127.0.0.7"


async def test_a_source_this_node_does_not_have_is_an_error_of_this_node() -> None:
    result = await probe(target_at(1, type=MonitorType.TCP, source=ip_address("192.0.2.1")))
    assert result.reason is DownReason.LOCAL_ERROR
    assert result.detail == "this node: cannot send from 192.0.2.1: cannot assign requested address"


async def test_a_source_of_the_other_family_is_an_error_of_this_node() -> None:
    result = await probe(target_at(1, type=MonitorType.TCP, source=ip_address("::1")))
    assert result.reason is DownReason.LOCAL_ERROR


async def test_no_port_is_an_error_of_this_node() -> None:
    result = await probe(target_at(0, type=MonitorType.TCP))
    assert result.reason is DownReason.LOCAL_ERROR
    assert "set `port`" in result.detail


async def test_no_descriptors_is_an_error_of_this_node() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        result = await probe(target_at(1, type=MonitorType.TCP))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (result.passed, result.reason) == (False, DownReason.LOCAL_ERROR)
    assert result.detail == "this node: cannot make a socket: too many open files"


@pytest.mark.parametrize(
    ("code", "at_once", "later"),
    [
        (errno.ECONNREFUSED, DownReason.REFUSED, DownReason.REFUSED),
        (errno.ECONNRESET, DownReason.RESET, DownReason.RESET),
        (errno.ETIMEDOUT, DownReason.TIMEOUT, DownReason.TIMEOUT),
        (errno.EHOSTUNREACH, DownReason.UNREACHABLE, DownReason.UNREACHABLE),
        (errno.ENETUNREACH, DownReason.UNREACHABLE, DownReason.UNREACHABLE),
        (errno.ENOPROTOOPT, DownReason.LOCAL_ERROR, DownReason.UNREACHABLE),
        (errno.EACCES, DownReason.LOCAL_ERROR, DownReason.UNREACHABLE),
        (errno.EPERM, DownReason.LOCAL_ERROR, DownReason.UNREACHABLE),
        (errno.EADDRNOTAVAIL, DownReason.LOCAL_ERROR, DownReason.LOCAL_ERROR),
        (errno.EAGAIN, DownReason.LOCAL_ERROR, DownReason.UNREACHABLE),
        (errno.ENOBUFS, DownReason.LOCAL_ERROR, DownReason.LOCAL_ERROR),
        (errno.ENETDOWN, DownReason.LOCAL_ERROR, DownReason.LOCAL_ERROR),
    ],
)
def test_error_numbers_have_one_meaning(code: int, at_once: DownReason, later: DownReason) -> None:
    assert refused_here(code, "connect").reason is at_once
    assert failed_there(code, "connect").reason is later


async def test_cancellation_leaves_nothing_behind() -> None:
    with deaf_listener() as port:
        before = descriptors()
        task = asyncio.create_task(probe(target_at(port, type=MonitorType.TCP, timeout_s=5)))
        await asyncio.sleep(0.02)
        assert len(descriptors()) == len(before) + 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert descriptors() == before


async def test_an_attempt_leaves_no_timer_behind() -> None:
    async with serving(silent) as port:
        assert (await probe(target_at(port, type=MonitorType.TCP, timeout_s=60))).passed
    timers: list[asyncio.TimerHandle] = getattr(asyncio.get_running_loop(), "_scheduled")  # noqa: B009 - not in typeshed
    assert all(timer.cancelled() for timer in timers)


async def test_a_server_that_sends_without_end_is_cut_off() -> None:
    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with serving(flood) as port:
        deadline = Deadline(30)
        stream = TcpStream(destination(target_at(port, type=MonitorType.TCP)), deadline)
        await stream.connect()
        pieces: list[int] = []

        async def receive_all() -> None:
            while True:
                pieces.append(len(await stream.recv()))

        with pytest.raises(ProbeFailed, match="without end"):
            await receive_all()
        stream.close()
        deadline.close()
    assert RECEIVED_LIMIT_BYTES - 4096 < sum(pieces) <= RECEIVED_LIMIT_BYTES


async def test_time_in_which_this_node_stood_still_is_not_the_servers() -> None:
    """F46: a long step on the event loop, then the server's answer: it passes."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        time.sleep(0.4)  # noqa: ASYNC251 - the stall
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(slowly) as port:
        result = await probe(target_at(port, type=MonitorType.HTTP, timeout_s=0.2))
    assert result.passed, result


async def test_a_node_that_stands_still_again_and_again_still_ends_the_attempt() -> None:
    async def stall() -> None:
        while True:
            time.sleep(0.15)  # noqa: ASYNC251 - the stall
            await asyncio.sleep(0)

    stalls = asyncio.create_task(stall())
    with deaf_listener() as port:
        result = await asyncio.wait_for(probe(target_at(port, type=MonitorType.TCP, timeout_s=0.2)), 5)
    stalls.cancel()
    assert result.reason is DownReason.TIMEOUT


async def test_an_attempt_does_not_begin_to_wait_after_its_deadline() -> None:
    deadline = Deadline(0.0)
    await asyncio.sleep(0.01)
    left, right = socket.socketpair()
    with left, right, pytest.raises(Exception, match="took longer than 0 s"):
        await deadline.readable(left.fileno())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"plain", "plain"),
        (b"a\x1b[31mred\r\n\x00", "a\\x1b[31mred\\r\\n\\x00"),
        ("a\u202eb", "a\\u202eb"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\u00e4", "\u00e4"),
        ("x" * 100, "x" * 77 + "..."),
        (b"\x1b" * 100, ("\\x1b" * 20)[:77] + "..."),
    ],
)
def test_strangers_words_are_harmless(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


async def test_a_type_of_a_later_version_is_an_error_of_this_node() -> None:
    result = await probe(target_at(1, type="telepathy"))
    assert result.reason is DownReason.LOCAL_ERROR
    assert "not supported by this version" in result.detail
