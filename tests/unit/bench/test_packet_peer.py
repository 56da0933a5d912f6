# SPDX-License-Identifier: Apache-2.0
"""The packet bench's view of a peer: what counts as delivered, and that an object of another kind is refused."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from bench.packet.harness import ETHERNET, Traffic
from bench.packet.katran import ROUTER, check_layout, delivered, flow_key
from bench.packet.results import Result
from fairlead.errors import DataPlaneError
from support.packets import ACK, NODE_MAC, UDP, Address, ends, frame, ipv4, ipv6, packet, tcp, tcp_frame, udp
from support.xdp import program_object

C4, V4, C6, V6 = "10.64.0.0:1024", "10.0.0.100:80", "[2001:db8:c::]:1024", "[2001:db8::100]:80"
SERVERS4: list[Address] = [ip_address("10.0.1.10"), ip_address("10.0.1.11")]
SERVERS6: list[Address] = [ip_address("2001:db8:1::10"), ip_address("2001:db8:1::11")]
SOURCE4, SOURCE6 = ip_address("172.16.7.7"), ip_address("100::7")
FLOWS = 1000


def traffic(client: str = C4, vip: str = V4, flows: int = FLOWS) -> Traffic:
    return Traffic(tcp_frame(client, vip, ACK), flows)


def tunnelled(inner: bytes, server: Address, protocol: int = 4, ttl: int = 64) -> bytes:
    """A frame to the router with ``inner``, and the padding of the frame it came in, inside."""
    size = 64 if len(inner) <= 64 - ETHERNET else 128
    if server.version == 4:
        outer = ipv4(SOURCE4, server, protocol, inner, fragment=0, ttl=ttl)
    else:
        outer = ipv6(SOURCE6, server, protocol, inner, hops=ttl)
    return frame(outer, source=NODE_MAC, destination=ROUTER) + bytes(size - ETHERNET - len(inner))


def inner4(client: str = C4) -> bytes:
    e = ends(client, V4)
    return packet(e, 6, tcp(e, ACK))


def test_a_tunnelled_packet_is_delivered_to_its_server() -> None:
    assert delivered(tunnelled(inner4(), SERVERS4[1]), traffic(), SERVERS4) == (inner4() + bytes(10), 1)
    assert delivered(tunnelled(inner4(), SERVERS6[0]), traffic(), SERVERS6)[1] == 0
    six = ends(C6, V6)
    inside = packet(six, 6, tcp(six, ACK))
    assert delivered(tunnelled(inside, SERVERS6[0], 41), traffic(C6, V6, 1), SERVERS6)[0].startswith(inside)


def test_every_flow_of_the_traffic_may_be_inside_and_no_other_packet() -> None:
    other = bytearray(inner4())
    other[12:16] = ip_address("10.64.0.9").packed
    assert delivered(tunnelled(bytes(other), SERVERS4[0]), traffic(), SERVERS4)[1] == 0
    with pytest.raises(AssertionError, match="was changed"):
        delivered(tunnelled(bytes(other), SERVERS4[0]), traffic(flows=1), SERVERS4)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda sent: NODE_MAC + sent[6:], "not to the router"),
        (lambda sent: sent[:6] + ROUTER + sent[12:], "not from this node"),
        (lambda _: ROUTER + NODE_MAC + traffic().template[12:], "not a tunnelled packet"),
        (lambda sent: sent[:24] + b"\0\0" + sent[26:], "not a tunnelled packet"),
        (lambda _: tunnelled(inner4(), SERVERS4[0], ttl=63), "TTL and protocol"),
        (lambda _: tunnelled(inner4(), SERVERS4[0], 41), "TTL and protocol"),
        (lambda _: tunnelled(inner4(), ip_address("10.0.1.200")), "which is no server"),
        (lambda sent: sent[:42] + b"\0" + sent[43:], "was changed"),
        (lambda sent: sent[:-1], "was changed"),
    ],
)
def test_anything_else_is_not_delivered(spoil: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        delivered(spoil(tunnelled(inner4(), SERVERS4[0])), traffic(), SERVERS4)


@pytest.mark.parametrize("at", [12, 14, 18])
def test_an_outer_header_of_ipv6_must_be_whole_too(at: int) -> None:
    sent = bytearray(tunnelled(inner4(), SERVERS6[0]))
    sent[at] ^= 0x80
    with pytest.raises(AssertionError, match="not a tunnelled packet"):
        delivered(bytes(sent), traffic(), SERVERS6)


def test_a_flow_is_known_by_addresses_in_sixteen_bytes_ports_and_protocol() -> None:
    e = ends(C4, V4)
    assert flow_key(packet(e, UDP, udp(e))) == (
        bytes.fromhex("0a400000")
        + bytes(12)
        + bytes.fromhex("0a000064")
        + bytes(12)
        + bytes.fromhex("0400005011000000")
    )
    six = ends(C6, V6)
    assert flow_key(packet(six, 6, tcp(six))) == (
        six.source.packed + six.destination.packed + bytes.fromhex("0400005006000000")
    )


def test_another_programs_object_is_refused_by_the_name_of_the_map_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataPlaneError, match="no map vip_map; is it Katran's"):
        check_layout(program_object())
    with pytest.raises(DataPlaneError, match="no such file"):
        check_layout(tmp_path / "nowhere.o")
    (tmp_path / "text.o").write_text("text")
    with pytest.raises(DataPlaneError, match=r"text\.o"):
        check_layout(tmp_path / "text.o")


def test_a_map_of_another_layout_is_refused_with_both_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.packet.katran.LAYOUT", {"vips": (1, 20, 8, 0)})
    with pytest.raises(DataPlaneError, match=r"map vips has .* \(1, 16, 4, 0\), not \(1, 20, 8, 0\)"):
        check_layout(program_object())


def test_our_share_of_a_peers_time_counts_from_the_floor() -> None:
    won = Result("B1", "row", 1, 50.0, 55.0, 120.0, 120.0, "", None, 150.0, 0.7)
    assert won.share == pytest.approx(0.7)
    assert won.beats is True
    assert Result("B1", "row", 1, 50.0, 55.0, 121.0, 121.0, "", None, 150.0, 0.7).beats is False
    alone = Result("B1", "row", 1, 50.0, 55.0, 120.0, 120.0, "", None)
    assert (alone.share, alone.beats) == (None, None)
