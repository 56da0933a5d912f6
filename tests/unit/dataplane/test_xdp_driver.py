# SPDX-License-Identifier: Apache-2.0
"""The XDP data plane over its life: agents that die, upgrades, drift, foreign programs, ids, room."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import threading
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.xdp import abi, driver, kernel, pins, records
from fairlead.dataplane.xdp.driver import XdpDataPlane
from fairlead.dataplane.xdp.libbpf.hooks import XDP_GENERIC, XDP_NATIVE, Link, attached_program
from fairlead.dataplane.xdp.libbpf.maps import BpfMap
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.dataplane.xdp.release import lingers
from fairlead.dataplane.xdp.room import Needs
from fairlead.errors import DataPlaneError
from fairlead.model.net import AddressRange
from fairlead.model.service import Forwarding, Scheduler
from fairlead.model.state import (
    DeleteServer,
    FlowTreatment,
    ForwardingState,
    OpenListener,
    Plan,
    PutServer,
    ServiceMode,
    TableSpec,
)
from fairlead.model.vip import STATIC, Vip
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support import xdp
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from support.xdp import ip
from support.xdp_plane import forwarding_host, opened_plane, plane
from unit.dataplane.contract import bring, same

pytestmark = pytest.mark.root
VIP = "192.0.2.10:80"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with forwarding_host("192.0.2.10/24", "10.0.0.254/24"):
        yield


def state(
    forwarding: Forwarding = Forwarding.NAT, *, dead: frozenset[str] = frozenset(), at: tuple[str, ...] = (VIP,),
    count: int = 3, **settings: object,
) -> ForwardingState:  # fmt: skip
    """One service ``web`` with servers 10.0.0.1, 10.0.0.2, ..."""
    addresses = [f"10.0.0.{n}:8080" for n in range(1, count + 1)]
    servers = tuple(server_spec(f"web/{at}", at) for at in addresses)
    table = table_spec(dict.fromkeys(addresses, 1), dead=dead, size=251)
    service = service_spec("web", tables.digest(table), forwarding=forwarding, **settings)
    return forwarding_state(servers, (table,), (service,), tuple(listener("web", it) for it in at))


def index(name: str = "eth0") -> int:
    return socket.if_nametoindex(name)


def map_of(made: XdpDataPlane, name: str) -> BpfMap:
    return made._in.kernel.maps[name]


async def adopted(events: list[tuple[str, str, str]] | None = None) -> XdpDataPlane:
    made = plane(events)
    await made.start()
    return made


async def test_it_attaches_where_the_vip_and_the_servers_are_and_takes_all_away_when_it_stops() -> None:
    made = await adopted()
    assert not attached_program(index())
    await bring(made, state())
    assert attached_program(index(), XDP_NATIVE)
    assert not attached_program(index("far0"))
    await made.stop(drain_s=0)
    assert not attached_program(index())
    assert not pins.namespace_root().exists()


async def test_what_moves_to_another_interface_is_found_there() -> None:
    for name, address in (("eth1", "10.1.0.254/24"), ("eth2", "198.51.100.10/24")):
        ip("link", "add", name, "type", "veth", "peer", "name", f"far-{name}")
        for end in (name, f"far-{name}"):
            ip("link", "set", end, "up")
        ip("addr", "add", address, "dev", name)
    async with opened_plane() as made:
        await bring(made, state())
        assert not attached_program(index("eth1"))
        goal = state()
        key = next(iter(goal.servers))
        moved = replace(goal, servers={**goal.servers, key: server_spec(key, "10.1.0.1:8080")})
        await bring(made, moved)
        assert attached_program(index("eth1")), "where one of the servers is now"
        assert not attached_program(index("eth2"))
        away = listener("web", "198.51.100.10:80")
        await bring(made, replace(moved, listeners=moved.listeners | {away}))
        assert attached_program(index("eth2")), "where another VIP is"


async def test_an_agent_that_dies_leaves_all_to_the_next() -> None:
    goal = state(allowed=(AddressRange(0xFFFF_0A00_0000, 0xFFFF_0AFF_FFFF),), at=(VIP, "192.0.2.10:1000-2000"))
    first = await adopted()
    await bring(first, goal)
    program = attached_program(index())
    maps = {name: dict(map_of(first, name).items()) for name in ("listeners4", "replies4", "access", "ranges")}
    services = map_of(first, "services").first_rows(8)
    await first.detach()
    assert attached_program(index()) == program
    events: list[tuple[str, str, str]] = []
    second = await adopted(events)
    assert same(await second.observe(), goal)
    assert not plan(goal, await second.observe())
    assert attached_program(index()) == program
    assert {name: dict(map_of(second, name).items()) for name in maps} == maps
    assert map_of(second, "services").first_rows(8) == services
    assert not events
    await second.stop(drain_s=0)


@pytest.mark.parametrize("forwarding", [Forwarding.NAT, Forwarding.DSR, Forwarding.TUNNEL, Forwarding.FULLNAT])
async def test_adoption_knows_every_forwarding_and_goes_on_changing(forwarding: Forwarding) -> None:
    first = await adopted()
    await bring(first, state(forwarding))
    await first.detach()
    second = await adopted()
    changed = state(forwarding, dead=frozenset({"10.0.0.2:8080"}))
    await bring(second, changed)
    assert same(await second.observe(), changed)
    await second.detach()


async def test_an_upgrade_replaces_the_program_and_keeps_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await adopted()
    await bring(first, state())
    program, flows = attached_program(index()), map_of(first, "flows4").id
    await first.detach()
    monkeypatch.setattr(kernel, "_digest", lambda _: "another")
    events: list[tuple[str, str, str]] = []
    second = await adopted(events)
    assert attached_program(index()) not in {0, program}
    assert map_of(second, "flows4").id == flows
    assert [kind for kind, _, _ in events] == ["xdp_replaced"]
    assert same(await second.observe(), state())
    assert len(pins.generations(second._in.kernel.root)) == 1
    await second.detach()


async def test_a_layout_of_another_version_is_replaced_once_everything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await adopted()
    await bring(first, state())
    program = attached_program(index())
    await first.detach()
    monkeypatch.setattr("fairlead.dataplane.xdp.abi.ABI", 999)
    events: list[tuple[str, str, str]] = []
    second = await adopted(events)
    assert attached_program(index()) == program  # the old one forwards until then
    await bring(second, state())
    assert attached_program(index()) not in {0, program}
    assert same(await second.observe(), state())
    assert [kind for kind, _, _ in events] == ["other_layout", "flows_carried"]
    await second.detach()


async def test_another_program_is_never_replaced() -> None:
    foreign = LoadedObject(xdp.bed_object())
    with closing(foreign), closing(Link.attach(foreign.programs["pass_all"], index(), XDP_NATIVE)):
        number = attached_program(index())
        made = await adopted()
        with pytest.raises(DataPlaneError, match=r"eth0 carries another XDP program 'pass_all' .*ip link set dev eth0"):
            await bring(made, state())
        assert attached_program(index()) == number
        assert not (await made.observe()).listeners  # so that it is tried again
    await bring(made, state())
    assert same(await made.observe(), state())
    assert attached_program(index()) not in {0, number}
    await made.stop(drain_s=0)


async def test_an_interface_without_native_mode_gets_generic_mode_and_a_warning() -> None:
    events: list[tuple[str, str, str]] = []
    async with opened_plane(events, interfaces=("lo",)) as made:
        await bring(made, state())
        assert attached_program(index("lo"), XDP_GENERIC)
        assert ("xdp_generic", "lo") in {event[:2] for event in events}


async def test_a_large_mtu_gets_generic_mode_and_a_warning_that_names_it() -> None:
    for name in ("eth0", "far0"):
        ip("link", "set", name, "mtu", "9000")
    events: list[tuple[str, str, str]] = []
    async with opened_plane(events) as made:
        await bring(made, state())
        assert attached_program(index(), XDP_GENERIC)
        assert any(kind == "xdp_generic" and "MTU" in says for kind, _, says in events)


async def test_native_mode_is_refused_where_there_is_none() -> None:
    async with opened_plane(interfaces=("lo",), mode="native") as made:
        with pytest.raises(DataPlaneError, match=r"XDP cannot be attached to lo .native mode.*generic works"):
            await bring(made, state())


async def test_an_interface_that_comes_back_gets_the_program_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    events: list[tuple[str, str, str]] = []
    async with opened_plane(events) as made:
        await bring(made, state())
        ip("link", "del", "eth0")
        await made.observe()
        assert "xdp_lost" in {kind for kind, _, _ in events}
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        ip("link", "set", "eth0", "up")
        ip("addr", "add", "192.0.2.10/24", "dev", "eth0")
        await made.observe()
        assert attached_program(index())


async def test_an_interface_that_is_not_there_yet_is_told_and_gets_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    events: list[tuple[str, str, str]] = []
    ip("link", "del", "eth0")
    async with opened_plane(events) as made:
        made.set_vips(frozenset({Vip(ip_address("192.0.2.10"), 24, "eth0", STATIC)}))
        await bring(made, state())
        assert [(kind, subject) for kind, subject, _ in events] == [("interface_missing", "eth0")]
        assert "no interface carries" in (made.trouble() or "")
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        ip("link", "set", "eth0", "up")
        await made.observe()
        assert attached_program(index())
        assert made.trouble() is None
        assert len(events) == 1, "once"


# Drift (F48)


@pytest.mark.parametrize(
    "name", ["servers", "services", "listeners4", "ranges", "replies4", "vips", "access", "slots", "near"]
)
async def test_what_something_else_changed_is_put_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    goal = state(allowed=(AddressRange(0xFFFF_0A00_0000, 0xFFFF_0AFF_FFFF),), at=(VIP, "192.0.2.10:1000-2000"))
    async with opened_plane() as made:
        await bring(made, goal)
        await made.observe()  # everything is right now
        spoiled = map_of(made, name)
        if name == "slots":
            (table,) = made._held.tables.values()
            block = made._in.slots(table.base, table.units)
            made._in._write_slots(table.base, bytes(len(block)))
        elif name == "near":
            place = abi.near_index(abi.packed(ip_address("192.0.2.10")))
            block = made._in._memory["near"][place : place + 1]
            made._in._memory["near"][place] = 0
        elif name in ("servers", "services"):
            block = spoiled.first_rows(2)
            spoiled.put(records.u32(1), bytes(spoiled.value_size))
        else:
            entries = sorted(spoiled.items())
            spoiled.delete(entries[0][0])
            if name == "listeners4":
                spoiled.put(bytes(8), records.u32(77))
        await bring(made, goal)
        await made.observe()
        if name == "slots":
            (table,) = made._held.tables.values()
            assert made._in.slots(table.base, table.units) == block
        elif name == "near":
            assert made._in._memory["near"][place : place + 1] == block != bytes(1)
        elif name in ("servers", "services"):
            assert spoiled.first_rows(2) == block
        else:
            assert sorted(spoiled.items()) == entries


async def test_changes_during_a_look_do_not_wait_for_it_and_nothing_of_them_is_drift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("SCAN_S", 0.0), ("SLICE_S", 0.0), ("PAUSE_S", 0.002)):  # one part at a time
        monkeypatch.setattr(f"fairlead.dataplane.xdp.driver.{name}", value)
    async with opened_plane() as made:
        goal, turns = state(), 0
        await bring(made, goal)
        looking = asyncio.create_task(made.look())
        while not looking.done():
            turns += 1
            goal = state(dead=frozenset(("10.0.0.1:8080",) if turns % 2 else ()), count=3 + turns % 3)
            await made.apply(plan(goal, await made.observe(thorough=False)))
            assert same(await made.observe(thorough=False), goal)
            await asyncio.sleep(0)
        await looking
        assert turns > 5
        assert same(await made.observe(), goal)


async def test_drift_of_something_with_a_name_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    async with opened_plane() as made:
        await bring(made, state())
        key = next(iter(map_of(made, "listeners4").keys()))
        map_of(made, "listeners4").delete(key)
        assert [type(op) for op in plan(state(), await made.observe()).ops] == [OpenListener]


# Ids


async def test_ids_of_a_server_at_another_address_differ_and_flows_keep_the_old_one() -> None:
    async with opened_plane() as made:
        await bring(made, state())
        old = made._held.servers["web/10.0.0.1:8080"].number
        moved = server_spec("web/10.0.0.1:8080", "10.0.0.77:8080")
        await made.apply(Plan((PutServer(moved),)))
        new = made._held.servers["web/10.0.0.1:8080"].number
        assert new != old
        rows = map_of(made, "servers").first_rows(new + 1)
        assert rows[old * 64 : old * 64 + 16] != rows[new * 64 : new * 64 + 16]
        await made.apply(Plan((PutServer(moved._replace(flows=FlowTreatment.RESET)),)))
        rows = map_of(made, "servers").first_rows(new + 1)
        assert rows[old * 64 + 21] & 1  # flows that stayed with the old address are reset, too
        assert rows[new * 64 + 21] & 1


async def test_ids_come_back_when_no_flow_holds_them_and_not_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.RELEASE_S", 0.0)
    async with opened_plane() as made:
        seen = []
        for _ in range(20):
            await made.apply(Plan((PutServer(server_spec("web/1", "10.0.0.1:80")),)))
            seen.append(made._held.servers["web/1"].number)
            await made.apply(Plan((DeleteServer("web/1"),)))
            await made.observe()
            assert not lingers(made._held)
        assert len(set(seen)) == 20
        assert not list(map_of(made, "names_server").keys())


async def test_another_forwarding_is_another_service_id() -> None:
    async with opened_plane() as made:
        await bring(made, state(Forwarding.DSR))
        old = made._held.services["web"].number
        await bring(made, state(Forwarding.TUNNEL))
        new = made._held.services["web"].number
        assert old != new
        assert set(dict(map_of(made, "listeners4").items()).values()) == {records.u32(new)}
        assert same(await made.observe(), state(Forwarding.TUNNEL))


async def test_another_forwarding_and_other_servers_at_once_leave_no_table_behind() -> None:
    async with opened_plane() as made:
        await bring(made, state(Forwarding.DSR))
        goal = state(Forwarding.TUNNEL, dead=frozenset({"10.0.0.1:8080"}))
        await bring(made, goal)
        assert same(await made.observe(), goal)


# Room


async def test_maps_grow_and_flows_stay() -> None:
    async with opened_plane() as made:
        await bring(made, state())
        program, flows, servers = attached_program(index()), map_of(made, "flows4").id, map_of(made, "servers")
        many = [f"10.{n >> 8}.{n & 255}.1:80" for n in range(servers.max_entries)]
        extra = forwarding_state(
            tuple(server_spec(f"many/{at}", at) for at in many),
            (),
            (service_spec("idle", mode=ServiceMode.DROP, forwarding=Forwarding.NAT),),
            (listener("idle", "192.0.2.11:80"),),
        )
        goal = replace(
            state(),
            servers={**state().servers, **extra.servers},
            services={**state().services, **extra.services},
            listeners=state().listeners | extra.listeners,
        )
        await bring(made, goal)
        assert same(await made.observe(), goal)
        assert map_of(made, "flows4").id == flows
        assert map_of(made, "servers").max_entries > servers.max_entries
        assert attached_program(index()) not in {0, program}
        await made.detach()
        second = await adopted()
        assert same(await second.observe(), goal)
        await second.detach()


async def test_lc_is_refused_with_a_reason() -> None:
    async with opened_plane() as made:
        with pytest.raises(DataPlaneError, match="needs the number of open connections"):
            await bring(made, state(scheduler=Scheduler.LC))


async def test_udp_servers_that_go_down_let_their_flows_go() -> None:
    async with opened_plane() as made:
        await bring(made, state())
        number = made._held.servers["web/10.0.0.1:8080"].number
        await made.apply(
            Plan((PutServer(server_spec("web/10.0.0.1:8080", "10.0.0.1:8080", flows=FlowTreatment.UNPIN)),))
        )
        assert map_of(made, "servers").first_rows(number + 1)[number * 64 + 21] == 4


async def test_two_services_with_one_server_make_its_replies_ambiguous_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    async with opened_plane() as made:
        await bring(made, state(idle_timeout_ms=300))
        table = next(iter(state().tables))
        other = service_spec("other", table, forwarding=Forwarding.NAT, idle_timeout_ms=300)
        both = replace(
            state(idle_timeout_ms=300),
            services={**state(idle_timeout_ms=300).services, "other": other},
            listeners=state().listeners | {listener("other", "192.0.2.11:80")},
        )
        await bring(made, both)
        flags = [raw[18:20] for _, raw in map_of(made, "replies4").items()]
        assert flags == [b"\x03\x00"] * 3  # ambiguous, and flows from before belong to the first
        assert map_of(made, "servers").first_rows(2)[64 + 21] == 2
        await asyncio.sleep(0.35)
        await made.observe()
        assert [raw[18:20] for _, raw in map_of(made, "replies4").items()] == [b"\x01\x00"] * 3
        await bring(made, state(idle_timeout_ms=300))
        await asyncio.sleep(0.35)
        await made.observe()
        assert [raw[18:20] for _, raw in map_of(made, "replies4").items()] == [b"\0\0"] * 3
        assert map_of(made, "servers").first_rows(2)[64 + 21] == 0


async def test_a_page_of_nothing_and_counters_of_nothing() -> None:
    async with opened_plane() as made:
        await bring(made, state())
        assert (await made.flows(FlowFilter("web"), None, 10)).flows == ()
        counters = await made.counters()
        assert counters.services["web"].connections == 0
        assert counters.packets["pass_unrelated"] >= 0


def switch_forwarding(value: int) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text(str(value))


@pytest.fixture
def no_forwarding() -> None:
    switch_forwarding(0)


async def test_switched_off_forwarding_is_told_by_name(no_forwarding: None) -> None:
    events: list[tuple[str, str, str]] = []
    async with opened_plane(events) as made:
        await bring(made, state())
        told = [event for event in events if event[0] == "forwarding"]
        assert [subject for _, subject, _ in told] == ["net.ipv4.conf.eth0.forwarding"]
        assert "sysctl -w net.ipv4.ip_forward=1" in told[0][2]
        assert made.trouble() == f"{told[0][1]} {told[0][2]}"
        switch_forwarding(1)
        assert made.trouble() is None


def detached_by_hand(pin: str) -> None:
    path = pins.namespace_root() / pin
    subprocess.run(["bpftool", "link", "detach", "pinned", str(path)], check=True, capture_output=True)


async def test_a_program_that_was_detached_is_trouble_until_it_is_back() -> None:
    """Also when everything was looked at a moment ago."""
    async with opened_plane() as made:
        await bring(made, state())
        await made.observe()
        assert made.trouble() is None
        detached_by_hand(f"{pins.LINK}{index()}")
        assert not attached_program(index())
        assert made.trouble() == "the XDP program of eth0 has gone"
        await made.observe()
        assert made.trouble() is None
        assert attached_program(index())


def resolvers() -> dict[str, int]:
    """Pins of the tc program beside the XDP program, and the ids of the programs."""
    found = {}
    for path in sorted(pins.namespace_root().glob(f"{pins.RESOLVER}*")):
        with closing(Link.at(path)) as link:
            found[path.name], at = link.state()
            assert at == index()
    return found


async def test_the_program_for_unknown_neighbours_outlives_the_agent_and_goes_with_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await adopted()
    await bring(first, state())
    (before,) = resolvers().items()
    assert before[0].startswith(f"{pins.RESOLVER}{index()}-")
    await first.detach()
    assert dict([before]) == resolvers()
    second = await adopted()
    await bring(second, state())
    assert dict([before]) == resolvers()
    await second.detach()
    monkeypatch.setattr("fairlead.dataplane.xdp.resolver.Resolver._version", lambda _: "another")
    third = await adopted()
    (after,) = resolvers().items()
    assert (after[0], after[1] != before[1]) == (f"{pins.RESOLVER}{index()}-another", True)
    await third.stop(drain_s=0)
    assert not pins.namespace_root().exists()


async def test_the_program_for_unknown_neighbours_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its pin it would go with the agent, while the XDP program counts on it."""
    monkeypatch.setattr("fairlead.dataplane.xdp.driver.SCAN_S", 0.0)
    async with opened_plane() as made:
        await bring(made, state())
        (name,) = resolvers()
        for spoil in ("unpin", "detach"):
            path = pins.namespace_root() / name
            if spoil == "unpin":
                path.unlink()
            else:
                detached_by_hand(name)
            await made.observe()
            assert list(resolvers()) == [name], spoil


async def test_a_kernel_without_tcx_forwards_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Link:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Link, "attach_ingress", refuse)
    async with opened_plane() as made:
        await bring(made, state())
        assert attached_program(index())
        assert resolvers() == {}
        assert made._in.kernel.meta()["constants"]["resolver"] == 0


async def test_tables_are_filled_while_the_program_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    filling, loading = threading.Event(), threading.Event()
    made = plane()
    fill, have_room = made._build_table, made._in.have_room

    def patient_fill(spec: TableSpec) -> array[int]:
        filling.set()
        assert loading.wait(5)
        return fill(spec)

    def patient_room(needs: Needs) -> None:
        loading.set()
        assert filling.wait(5)
        have_room(needs)

    monkeypatch.setattr(driver, "SMALL_TABLE", 0)
    monkeypatch.setattr(made, "_build_table", patient_fill)
    monkeypatch.setattr(made._in, "have_room", patient_room)
    try:
        await bring(made, state())
        assert same(await made.observe(), state())
    finally:
        await made.detach()


async def test_a_table_that_cannot_be_filled_leaves_a_plane_that_takes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_plane() as made:
        fill = made._build_table
        monkeypatch.setattr(made, "_build_table", lambda spec: fill(replace(spec, live=frozenset())))
        with pytest.raises(DataPlaneError, match="needs a live member"):
            await bring(made, state())
        monkeypatch.setattr(made, "_build_table", fill)
        await bring(made, state())
        assert same(await made.observe(), state())
