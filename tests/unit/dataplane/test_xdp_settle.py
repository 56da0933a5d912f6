# SPDX-License-Identifier: Apache-2.0
"""When the driver settles a service, and what unsettles it. What that means for packets: packet/test_settled.py."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fairlead.dataplane.xdp import abi, records, settle
from fairlead.dataplane.xdp.driver import XdpDataPlane
from fairlead.dataplane.xdp.records import u32
from fairlead.model.net import AddressRange, Endpoint, FlowQuestion, Protocol
from fairlead.model.service import Forwarding, Scheduler
from fairlead.model.state import ForwardingState, ServiceMode
from fairlead.policy import tables
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from support.packets import SYN, tcp_frame
from support.xdp_plane import forwarding_host, opened_plane, plane
from unit.dataplane.contract import bring

SERVERS = ("10.0.0.1:8080", "10.0.0.2:8080")
HERTZ = 250


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    with forwarding_host("192.0.2.10/24", "10.0.0.254/24"):
        yield


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet is on its way."""
    monkeypatch.setattr(settle, "_REST_S", 0.0)


def state(
    *dead: str, at: tuple[str, ...] = ("192.0.2.10:80",), forwarding: Forwarding = Forwarding.NAT
) -> ForwardingState:
    table = table_spec(dict.fromkeys(SERVERS, 1), dead=frozenset(dead), size=251)
    service = service_spec("web", tables.digest(table), forwarding=forwarding)
    servers = tuple(server_spec(f"web/{it}", it) for it in SERVERS)
    return forwarding_state(servers, (table,), (service,), tuple(listener("web", it) for it in at))


def is_settled(made: XdpDataPlane) -> bool:
    raw = made._in.kernel.maps["services"].get(u32(made._held.services["web"].number))
    assert raw is not None
    return abi.ServiceRecord.unpack(raw).is_settled


@pytest.mark.root
async def test_a_service_is_settled_until_it_changes(namespace: None, at_once: None) -> None:
    async with opened_plane() as made:
        await bring(made, state())
        assert not is_settled(made)
        await made.observe()
        assert is_settled(made)
        for changed in (state(SERVERS[0]), state(), state(at=("192.0.2.10:80", "192.0.2.10:81"))):
            await bring(made, changed)
            assert not is_settled(made)
            await made.observe()
            assert is_settled(made)
        assert (await made.observe()).services == changed.services, "it is not taken for drift"


@pytest.mark.root
async def test_packets_may_be_on_their_way_for_a_while(namespace: None) -> None:
    async with opened_plane() as made:
        await bring(made, state())
        await made.observe()
        assert not is_settled(made)


@pytest.mark.root
async def test_a_change_during_a_round_waits_for_the_next(
    namespace: None, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "_PART", 512)  # of 2,048 blocks and 512 words: six steps
    async with opened_plane() as made:
        await bring(made, state())
        await made.observe()
        await bring(made, state(SERVERS[0]))  # the second step, and then the change
        for _ in range(2):
            await made.observe()
            assert not is_settled(made)
        for _ in range(7):
            await made.observe()
        assert is_settled(made)


@pytest.mark.root
async def test_the_next_agent_finds_out_for_itself(namespace: None, at_once: None) -> None:
    async with opened_plane() as made:
        await bring(made, state())
        await made.observe()
        await made.detach()
        second = plane()
        await second.start()
        assert not is_settled(second)
        await second.observe()
        assert is_settled(second)
        await second.detach()


@pytest.mark.root
async def test_larger_maps_unsettle(namespace: None, at_once: None) -> None:
    async with opened_plane() as made:
        await bring(made, state())
        await made.observe()
        room = made._in.kernel.maps["servers"].max_entries
        more = tuple(server_spec(f"more/{n}", f"10.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}:80") for n in range(room))
        was = state()
        await bring(made, replace(was, servers={**was.servers, **{it.key: it for it in more}}))
        assert not is_settled(made)


async def explained(made: XdpDataPlane) -> dict[str, str]:
    client, vip = Endpoint(ip_address("192.0.2.77"), 5000), Endpoint(ip_address("192.0.2.10"), 80)
    answer = await made.explain(FlowQuestion(Protocol.TCP, client, vip))
    assert answer is not None
    return {"server": str(answer.server), **{it.step: it.says for it in answer.steps}}


@pytest.mark.root
async def test_explain_tells_of_settled_services_and_of_flows_from_before_a_change(
    namespace: None, at_once: None
) -> None:
    async with opened_plane() as made:
        await bring(made, state())
        assert "now and then" not in (await explained(made))["service"]
        await made.observe()
        assert "now and then" in (await explained(made))["service"]
        program = made._in.kernel.now
        assert program is not None
        program.program.run(tcp_frame("192.0.2.77:5000", "192.0.2.10:80", SYN), ifindex=socket.if_nametoindex("eth0"))
        server = (await explained(made))["server"]
        await bring(made, state(server.removeprefix("web/"), forwarding=Forwarding.DSR))
        told = await explained(made)
        assert told["server"] == server
        assert "before the service was changed, forwarding nat" in told["flow"]
        assert "the destination becomes" in told["rewriting"]


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"forwarding": Forwarding.DSR}, True),
        ({"forwarding": Forwarding.TUNNEL}, True),
        ({"forwarding": Forwarding.FULLNAT}, False),
        ({"scheduler": Scheduler.SH}, False),
        ({"scheduler": Scheduler.WRR}, False),
        ({"protocol": Protocol.UDP}, False),
        ({"mode": ServiceMode.DROP}, False),
        ({"allowed": (AddressRange(0, 1),)}, False),
        ({"idle_timeout_ms": 0}, True),
        ({"idle_timeout_ms": 40_000}, True),
        ({"idle_timeout_ms": 30_000}, False),
    ],
)
def test_which_services_may_be_settled(changes: dict[str, object], may: bool) -> None:
    assert records.may_settle(service_spec("web", "table", **{"forwarding": Forwarding.NAT, **changes}), HERTZ) is may


@pytest.mark.parametrize(("hertz", "seconds"), [(100, 10.24), (250, 8.192), (300, 6.83), (1000, 8.192)])
def test_an_epoch_is_about_eight_seconds(hertz: int, seconds: float) -> None:
    assert (1 << records.epoch_shift(hertz)) / hertz == pytest.approx(seconds, rel=0.01)


@pytest.mark.root
async def test_the_program_is_told_when_many_flows_are_in_use(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "_CROWDED", 8)
    monkeypatch.setattr(settle, "_COUNT_S", 0.0)
    monkeypatch.setattr(settle, "_SAMPLE", 1)
    monkeypatch.setattr(records, "EPOCH_S", 0.1)
    async with opened_plane() as made:
        await bring(made, state())

        async def crowded() -> bool:
            await made.observe()
            raw = made._in.kernel.maps["settings"].get(u32(0))
            assert raw is not None
            return abi.Settings.unpack(raw).crowded == 1

        async def in_use() -> bool:
            assert made._in.kernel.now is not None
            for port in range(5000, 5010):
                frame = tcp_frame(f"192.0.2.77:{port}", "192.0.2.10:80", SYN)
                made._in.kernel.now.program.run(frame, ifindex=socket.if_nametoindex("eth0"))
            return await crowded()

        assert not await crowded()
        end = time.monotonic() + 20
        while not await in_use():
            assert time.monotonic() < end
        while await crowded():  # nobody is there any more
            assert time.monotonic() < end
