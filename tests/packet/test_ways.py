# SPDX-License-Identifier: Apache-2.0
"""The tc programs for probes, packet by packet; those that come out are built anew, with fresh checksums."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from support.packets import ICMP, ICMP6, TCP, UDP, Ends, ends, frame, icmp, ipv4, ipv6, packet, tcp, udp
from support.xdp import ROOT, compiled

pytestmark = pytest.mark.root

UNSPEC, SHOT = 0xFFFFFFFF, 2
MARK = abi.WAY_MARK | 7
OWN = {4: "10.0.1.1", 6: "2001:db8:1::1"}
NEAR = {4: "10.0.0.1", 6: "2001:db8::1"}  # where the VIP's family is not the server's
VIP = {4: "10.0.0.100", 6: "2001:db8::100"}
SERVER = {4: "10.0.1.10", 6: "2001:db8:1::10"}
SOURCE = {4: "10.0.2.1", 6: "2001:db8:2::1"}
PORT, SPORT = 80, 40001
TOS, TTL = 0x2E, 61


@dataclass(frozen=True)
class Case:
    """A way: families of server and VIP, and how packets get there."""

    server: int
    vip: int
    forwarding: abi.Forwarding

    @property
    def own(self) -> str:
        """The probe's address as the VIP sees it."""
        return OWN[self.vip] if self.server == self.vip else NEAR[self.vip]

    def sent(self) -> Ends:
        """As the socket sends it."""
        return Ends(ip_address(OWN[self.server]), SPORT, ip_address(SERVER[self.server]), PORT)

    def meant(self) -> Ends:
        """As the VIP gets it."""
        return Ends(ip_address(self.own), SPORT, ip_address(VIP[self.vip]), PORT)

    def record(self, protocol: int) -> bytes:
        """Of map ``ways``."""
        crosses = self.server != self.vip
        return abi.WayRecord(
            addr=abi.packed(ip_address(SERVER[self.server])),
            server_family=self.server,
            source=abi.packed(ip_address(SOURCE[self.server])),
            spread=bytes(4),
            vip=abi.packed(ip_address(VIP[self.vip])),
            near=abi.packed(ip_address(NEAR[self.vip])) if crosses else abi.NOWHERE,
            port=PORT,
            family=self.vip,
            proto=protocol,
            forwarding=self.forwarding,
        ).pack()

    def wrapped(self, inner: bytes) -> bytes:
        """With the outer header of a tunnel; a flow label is cut out."""
        if self.forwarding is abi.Forwarding.DSR:
            return inner
        following = 4 if self.vip == 4 else 41
        source, destination = ip_address(SOURCE[self.server]), ip_address(SERVER[self.server])
        if self.server == 4:
            return ipv4(source, destination, following, inner, tos=TOS)
        return ipv6(source, destination, following, inner, tos=TOS)


DSR, TUNNEL = abi.Forwarding.DSR, abi.Forwarding.TUNNEL
CASES = [Case(4, 4, DSR), Case(6, 6, DSR), *(Case(a, b, TUNNEL) for a in (4, 6) for b in (4, 6))]
PROTOCOLS = {"tcp": TCP, "udp": UDP}


def made(e: Ends, protocol: int, payload: bytes = b"probe") -> bytes:
    """A packet of a transport."""
    return packet(e, protocol, tcp(e, 2) if protocol == TCP else udp(e, payload), ttl=TTL, tos=TOS)


def without_label(raw: bytes) -> bytes:
    """A frame with the flow label of an IPv6 header at its start set to zero."""
    if raw[12:14] != b"\x86\xdd":
        return raw
    (word,) = struct.unpack_from(">I", raw, 14)
    return raw[:14] + struct.pack(">I", word & 0xFFF00000) + raw[18:]


@pytest.fixture
def ways(namespace: None) -> Iterator[LoadedObject]:
    with LoadedObject(compiled(ROOT / "bpf/ways.bpf.c")) as loaded:
        yield loaded


def have(ways: LoadedObject, case: Case, protocol: int) -> None:
    ways.maps["ways"].put(MARK.to_bytes(4, "little"), case.record(protocol))


def taken(ways: LoadedObject) -> int:
    """Packets that took the way."""
    return abi.WayRecord.unpack(ways.maps["ways"].get(MARK.to_bytes(4, "little")) or b"").packets


@contextlib.contextmanager
def asking(case: Case, protocol: int, mark: int = MARK) -> Iterator[None]:
    """A socket that waits for the answer to a probe."""
    family = socket.AF_INET if case.server == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    with socket.socket(family, kind | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 36, mark)
        sock.bind((OWN[case.server], SPORT))
        sock.connect_ex((SERVER[case.server], PORT))
        yield


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_probe_leaves_as_a_packet_of_the_service(ways: LoadedObject, case: Case, protocol: int) -> None:
    have(ways, case, protocol)
    run = ways.programs["fairlead_out"].run_marked(frame(made(case.sent(), protocol)), MARK)
    assert run.verdict == UNSPEC
    assert without_label(run.packet) == frame(case.wrapped(made(case.meant(), protocol)))
    assert taken(ways) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_answer_of_the_vip_is_the_servers(ways: LoadedObject, case: Case, protocol: int) -> None:
    have(ways, case, protocol)
    ways.programs["fairlead_out"].run_marked(frame(made(case.sent(), protocol)), MARK)
    answer = frame(made(case.meant().reversed(), protocol, b"answer"))
    with asking(case, protocol):
        run = ways.programs["fairlead_in"].run_marked(answer, 0)
    assert run.verdict == UNSPEC
    assert run.packet == frame(made(case.sent().reversed(), protocol, b"answer"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_nobody_asked_for_stays_as_it_is(ways: LoadedObject, case: Case) -> None:
    """The port has gone to a socket without the mark, which talks to the VIP of another node; or to none at all."""
    have(ways, case, UDP)
    answer = frame(made(case.meant().reversed(), UDP))
    with asking(case, UDP):
        assert ways.programs["fairlead_in"].run_marked(answer, 0).packet == answer, "no probe has gone out"
    ways.programs["fairlead_out"].run_marked(frame(made(case.sent(), UDP)), MARK)
    with asking(case, UDP, mark=0):
        assert ways.programs["fairlead_in"].run_marked(answer, 0).packet == answer
    assert ways.programs["fairlead_in"].run_marked(answer, 0).packet == answer


def test_every_checksum(ways: LoadedObject) -> None:
    """Of UDP, whatever it was: 0 is written as 0xffff, and stays 0 where the sender left it out."""
    case = Case(4, 4, DSR)
    have(ways, case, UDP)
    out, back = ways.programs["fairlead_out"], ways.programs["fairlead_in"]
    with asking(case, UDP):
        for number in range(0, 65536, 7):
            payload = struct.pack(">H", number)
            assert out.run_marked(frame(made(case.sent(), UDP, payload)), MARK).packet == frame(
                made(case.meant(), UDP, payload)
            )
            given, wanted = case.meant().reversed(), case.sent().reversed()
            assert back.run_marked(frame(made(given, UDP, payload)), 0).packet == frame(made(wanted, UDP, payload))
        given, wanted = case.meant().reversed(), case.sent().reversed()
        run = back.run_marked(frame(packet(given, UDP, udp(given, b"x", 0))), 0)
        assert run.packet == frame(packet(wanted, UDP, udp(wanted, b"x", 0)))


KINDS = {19: 0x88B5, 39: 0x88B5}  # the kernel itself refuses to begin with such packets of IP


@pytest.mark.parametrize(
    ("given", "mark"),
    [
        (made(ends("10.0.1.1:40001", "10.0.1.10:80"), TCP), 0),
        (made(ends("10.0.1.1:40001", "10.0.1.10:80"), TCP), 7),
        (made(ends("10.0.1.1:40001", "10.0.1.10:80"), TCP), abi.WAY_MARK | 8),
        (made(ends("10.0.1.1:40001", "10.0.1.11:80"), TCP), MARK),
        (made(ends("10.0.1.1:40001", "10.0.1.10:80"), UDP), MARK),
        (made(ends("[2001:db8:1::1]:40001", "[2001:db8:1::10]:80"), TCP), MARK),
        (b"\x45" + bytes(18), MARK),
        (b"\x00" * 39, MARK),
    ],
    ids=["no mark", "another mark", "no such way", "another server", "another protocol", "family", "short", "no IP"],
)
def test_what_is_no_probe_leaves_as_it_came(ways: LoadedObject, given: bytes, mark: int) -> None:
    have(ways, Case(4, 4, TUNNEL), TCP)
    run = ways.programs["fairlead_out"].run_marked(frame(given, kind=KINDS.get(len(given))), mark)
    assert (run.verdict, run.packet[14:]) == (UNSPEC, given)
    assert taken(ways) == 0


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_a_probe_that_cannot_go_the_way_goes_nowhere(ways: LoadedObject, fragment: int) -> None:
    have(ways, Case(4, 4, TUNNEL), UDP)
    e = Case(4, 4, TUNNEL).sent()
    given = ipv4(e.source, e.destination, UDP, udp(e, b"x" * 64), fragment=fragment)
    assert ways.programs["fairlead_out"].run_marked(frame(given), MARK).verdict == SHOT
    other = Ends(e.source, e.sport, e.destination, 81)
    assert ways.programs["fairlead_out"].run_marked(frame(made(other, UDP)), MARK).verdict == SHOT


@pytest.mark.parametrize("from_vip", [True, False], ids=["the VIP", "a router"])
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_icmp_errors_are_about_the_probe(ways: LoadedObject, case: Case, from_vip: bool) -> None:
    have(ways, case, UDP)
    ways.programs["fairlead_out"].run_marked(frame(made(case.sent(), UDP)), MARK)
    router = {4: "10.9.0.1", 6: "2001:db8:9::1"}[case.server]

    def complaint(about: Ends, complains: str) -> bytes:
        """The quote ends behind the ports: the checksum of the transport is nobody's concern."""
        e = Ends(ip_address(complains), 0, about.source, 0)
        quote = made(about, UDP)[: 20 + 6 if case.server == 4 else 40 + 6] + bytes(2)
        if case.server == 4:
            return frame(packet(e, ICMP, icmp(3, 3, bytes(4), quote)))
        return frame(packet(e, ICMP6, icmp(1, 4, bytes(4), quote, e)))

    with asking(case, UDP):
        given = complaint(case.meant(), VIP[case.vip] if from_vip else router)
        run = ways.programs["fairlead_in"].run_marked(given, 0)
    assert run.packet == complaint(case.sent(), SERVER[case.server] if from_vip else router)
