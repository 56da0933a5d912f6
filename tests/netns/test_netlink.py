# SPDX-License-Identifier: Apache-2.0
"""News of the kernel that get lost (F45): what is known afterwards is what is there."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from fairlead.announce.addresses import Addresses
from fairlead.announce.base import Event
from fairlead.announce.netlink import DUMP_S, Netlink
from fairlead.dataplane.xdp.host import Routes
from fairlead.model.vip import STATIC, Vip
from fairlead.protocols import rtnetlink
from fairlead.protocols.rtfilters import Filter
from fairlead.protocols.rtnetlink import Interrupted, Message
from support.netns import Lan, Node, lan

pytestmark = [pytest.mark.root, pytest.mark.system]
TINY = 4096
MANY = [IPv4Address("10.80.0.1") + number for number in range(5000)]


@pytest.fixture
def net() -> Iterator[Lan]:
    with lan() as made:
        yield made


@pytest.fixture
def node(net: Lan) -> Node:
    return net.add("one")


def change(node: Node, directory: Path, what: str, addresses: list[IPv4Address]) -> None:
    """Add or delete addresses of eth0, as fast as ``ip`` can."""
    batch = directory / "batch"
    batch.write_text("".join(f"address {what} {address}/32 dev eth0\n" for address in addresses))
    subprocess.run(["ip", "-n", node.namespace, "-batch", str(batch)], check=True, timeout=60)


def known(netlink: Netlink) -> set[str]:
    """What is known of eth0, as the command ``ip`` writes it."""
    link = netlink.link("eth0")
    assert link is not None
    return {f"{it.address}/{it.prefix}" for (index, _), it in netlink.addresses.items() if index == link.index}


@pytest.mark.timeout(120)
def test_f45_a_stalled_reader_with_a_tiny_buffer_knows_what_is_there(node: Node, runtime: Path) -> None:
    with node.inside(), closing(Netlink(TINY)) as netlink:
        change(node, runtime, "add", MANY)
        assert netlink.read_news(0.0)
        assert len(known(netlink)) > len(MANY)
        assert known(netlink) == node.addresses()
        change(node, runtime, "del", MANY)
        netlink.read_news(DUMP_S)
        assert known(netlink) == node.addresses()
        change(node, runtime, "add", MANY[:100])
        change(node, runtime, "del", MANY[:100])  # of these the news that are left say only that some came
        netlink.read_news(2 * DUMP_S)
        assert known(netlink) == node.addresses()
        assert netlink.next_at() is None
        change(node, runtime, "add", MANY[:1])
        assert netlink.read_news(2 * DUMP_S)
        assert known(netlink) == node.addresses(), "news are heard again"


def test_f45_lost_news_make_no_more_than_two_dumps_a_second(node: Node, runtime: Path) -> None:
    with node.inside(), closing(Netlink(TINY)) as netlink:
        again = 7.0 + DUMP_S
        for now, size, up_to_date in ((7.0, 200, True), (7.1, 400, False), (7.4, 600, False), (again, 800, True)):
            change(node, runtime, "add", MANY[size - 200 : size])
            netlink.read_news(now)
            assert (known(netlink) == node.addresses()) is up_to_date
            assert netlink.next_at() == (None if up_to_date else again)
        change(node, runtime, "del", MANY[:200])
        netlink.read_news(again)
        assert netlink.read_news(again + DUMP_S), "without any news"
        assert known(netlink) == node.addresses()


def test_f45_a_vip_that_went_unheard_is_put_back(node: Node, runtime: Path) -> None:
    vip = Vip(ip_address("10.9.0.100"), 24, "eth0", STATIC)
    told: list[Event] = []
    with node.inside(), closing(Netlink(TINY)) as netlink:
        addresses = Addresses(netlink, told.append)
        addresses.set([vip], 0.0)
        addresses.check(0.0)
        addresses.hold(vip, 0.0)
        change(node, runtime, "add", MANY[:500])
        node.ip("address", "del", "10.9.0.100/24", "dev", "eth0")
        assert netlink.read_news(1.0)
        addresses.check(1.0)
        addresses.close()
    assert node.holds("10.9.0.100/24")
    assert [event.kind for event in told] == ["vip_restored"]


def test_f45_the_data_plane_reads_many_addresses(node: Node, runtime: Path) -> None:
    change(node, runtime, "add", MANY)
    with node.inside(), Routes() as routes:
        found = {it.address for it in routes.addresses()}
    assert found >= set(MANY)
    assert ip_address(node.address) in found


def test_news_are_believed_from_the_kernel_alone(node: Node) -> None:
    """Whoever may send netlink messages to others can forge an address that has gone."""
    with node.inside(), closing(Netlink()) as netlink:
        before = known(netlink)
        gone = next(it for it in netlink.addresses.values() if str(it.address) == node.address)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
            forger.sendto(rtnetlink.delete_address(0, gone), (netlink._watch.getsockname()[0], 0))
        assert not netlink.read_news(0.0)
        assert known(netlink) == before


def test_answers_are_believed_from_the_kernel_alone(node: Node) -> None:
    with node.inside(), Routes() as routes, closing(Netlink()) as netlink:
        assert routes.addresses()  # the first request gives the socket its number
        forged = struct.pack("=IHHIIi", 20, 2, 0, routes._sequence + 1, 0, -2)  # there is nothing
        own = struct.pack("=IHHIIi", 20, 2, 0, netlink._sequence + 1, 0, -1)  # it is not permitted
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as forger:
            forger.sendto(forged, (routes._socket.getsockname()[0], 0))
            forger.sendto(own, (netlink._request.getsockname()[0], 0))
        assert routes.get(ip_address("10.9.0.77")) is not None
        link = netlink.link("eth0")
        assert link is not None
        netlink.add(link.index, ip_address("10.9.0.100"), 24)
    assert node.holds("10.9.0.100/24")


class Torn(Netlink):
    """Its first dump lacks everything, because of changes meanwhile."""

    torn = True

    def _read_all(self) -> None:
        super()._read_all()
        if self.torn:
            self.torn = False
            self.addresses.clear()
            self._take(Interrupted())


def test_f45_a_dump_that_changes_interrupted_is_made_again(node: Node) -> None:
    with node.inside(), closing(Torn(TINY)) as netlink:
        assert not known(netlink)
        assert netlink.next_at() is not None
        assert netlink.read_news(7.0)
        assert known(netlink) == node.addresses()


def test_f45_the_data_plane_makes_an_interrupted_dump_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    whole = Routes._ask

    def torn(self: Routes, request: bytes) -> Iterator[Message | Filter]:
        asked.append(request)
        if len(asked) == 1:
            yield Interrupted()
        else:
            yield from whole(self, request)

    monkeypatch.setattr(Routes, "_ask", torn)
    with node.inside(), Routes() as routes:
        assert node.address in {str(it.address) for it in routes.addresses()}
    assert len(asked) == 2
