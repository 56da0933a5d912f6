# SPDX-License-Identifier: Apache-2.0
"""What routers in the path of a tunnel say of the packets in it is for the clients whose packets they are (F21)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi
from fairlead.dataplane.xdp.abi import Counter
from packet.row import C4, C6, IN_MAC, SERVER4, V4, Row, error4, error6, furnish, tcp_packet, to_client
from packet.world import SNAT, World
from support.oracle.nouns import PASS, REDIRECT
from support.packets import TCP, frame, ipv4
from support.xdp import INSIDE, Bed

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def furnished(bed: Bed) -> World:
    world = World(bed)
    furnish(world)
    return world


@pytest.fixture
def world(furnished: World) -> World:
    furnished.forget()
    return furnished


def beyond4(
    inner: bytes, *, mtu: int = 1400, server: str = "10.0.1.10", source: str = "10.0.1.1", cut: int = 100
) -> bytes:
    """A router in the tunnel's path complains about ``inner``, tunnelled, of which it quotes so much."""
    outer = ipv4(ip_address(source), ip_address(server), 4 if inner[0] >> 4 == 4 else 41, inner)
    return frame(error4(outer[:cut], "10.9.0.1", source, mtu=mtu), source=SERVER4, destination=IN_MAC)


T4, T6 = "10.0.0.105:83", "[2001:db8::105]:83"
LARGE4, LARGE6 = tcp_packet(C4, T4, payload=bytes(1400)), tcp_packet(C6, T6, payload=bytes(1400))
BEYOND = (
    Row("tunnel, router says too big: the client is told", beyond4(LARGE4), REDIRECT,
        to_client(error4(LARGE4[:80], "10.0.0.105", "192.0.2.1", mtu=1380)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, router quotes eight bytes of the inner ports", beyond4(LARGE4, cut=48), REDIRECT,
        to_client(error4(LARGE4[:28], "10.0.0.105", "192.0.2.1", mtu=1380)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, IPv6 inside: never less than 1280", beyond4(LARGE6, mtu=1000), REDIRECT,
        to_client(error6(LARGE6[:80], "2001:db8::105", "2001:db8:c::1", mtu=1280)), Counter.SENT_PATH_MTU, INSIDE),
    Row("tunnel, router quotes too little", beyond4(LARGE4, cut=44), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: another server", beyond4(LARGE4, server="10.0.1.11"), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: another source", beyond4(LARGE4, source="10.0.1.2"), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: no service of a tunnel", beyond4(tcp_packet(C4, V4)), PASS, None, Counter.PASS_ICMP, INSIDE),
    Row("tunnel, forged: an MTU of nothing", beyond4(LARGE4, mtu=20), PASS, None, Counter.PASS_ICMP, INSIDE),
)  # fmt: skip


@pytest.mark.parametrize("row", BEYOND, ids=lambda row: row.name)
def test_f21_what_a_router_in_the_path_of_a_tunnel_says(world: World, row: Row) -> None:
    world.server(207, "10.0.1.10:0", source="10.0.1.1")
    world.service(207, "tunnel", (207,), (0,))
    for vip in ("10.0.0.105", "2001:db8::105"):
        world.listen(207, vip, TCP, 83)
    outcome = world.both(row.given, row.port)
    assert (outcome.verdict, outcome.counter) == (row.verdict, row.counter)
    assert outcome.frame == (row.given if row.out is None else row.out)


def test_f21_what_is_told_to_clients_is_limited(world: World) -> None:
    world.server(207, "10.0.1.10:0", source="10.0.1.1")
    world.service(207, "tunnel", (207,), (0,))
    world.listen(207, "10.0.0.105", TCP, 83)
    world.bed.settings(abi.Settings(answers=5))
    fates = [world.send(beyond4(LARGE4), INSIDE).counter for _ in range(100)]
    assert fates.count(Counter.SENT_PATH_MTU) >= 5
    assert fates.count(Counter.DROP_ANSWER_LIMIT) > 10
    world.bed.settings(world.settings, snat=SNAT)
