# SPDX-License-Identifier: Apache-2.0
"""Flows go from the tables of one layout to those of another; what cannot be understood is told and left."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.xdp import abi, notes
from fairlead.dataplane.xdp.driver import XdpDataPlane
from fairlead.dataplane.xdp.flows import TABLES, Found
from fairlead.dataplane.xdp.kernel import Kernel
from fairlead.dataplane.xdp.libbpf.hooks import attached_program
from fairlead.dataplane.xdp.libbpf.objects import LoadedObject
from fairlead.model.service import Forwarding, Scheduler
from fairlead.model.state import ForwardingState
from fairlead.policy import tables
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from support.packets import ACK, SYN, tcp_frame
from support.xdp import compiled
from support.xdp_plane import forwarding_host, plane
from unit.dataplane.contract import bring

pytestmark = pytest.mark.root
VIPS = ("192.0.2.10:80", "[2001:db8::10]:80")
Events = list[tuple[str, str, str]]


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with forwarding_host("192.0.2.10/24", "10.0.0.254/24", "2001:db8::10/64", "fd00::fe/64"):
        yield


def state(forwarding: Forwarding, *, first: int, count: int) -> ForwardingState:
    """A service of each family, by turn, with servers FIRST, FIRST + 1 ..."""
    servers, recipes, services, listeners = [], [], [], []
    for name, net, vip in (("web", "10.0.0.{}:80", VIPS[0]), ("web6", "[fd00::{}]:80", VIPS[1])):
        addresses = [net.format(n) for n in range(first, first + count)]
        servers += [server_spec(f"web/{at}", at) for at in addresses]
        table = table_spec(dict.fromkeys(addresses, 1), size=251, scheduler=Scheduler.RR)
        recipes.append(table)
        services.append(service_spec(name, tables.digest(table), forwarding=forwarding, scheduler=Scheduler.RR))
        listeners.append(listener(name, vip))
    return forwarding_state(tuple(servers), tuple(recipes), tuple(services), tuple(listeners))


def index() -> int:
    return socket.if_nametoindex("eth0")


async def started(events: Events | None = None) -> XdpDataPlane:
    made = plane(events)
    await made.start()
    return made


def connect(made: XdpDataPlane, port: int) -> None:
    """A client's first packet to each service, as the program that forwards gets it."""
    assert made._in.kernel.now is not None
    before = made._in.kernel.before
    program = (before if before is not None else made._in.kernel.now).program
    for source, vip in (("192.0.2.77", VIPS[0]), ("[2001:db8::77]", VIPS[1])):
        program.run(tcp_frame(f"{source}:{port}", vip, SYN), ifindex=index())


def tuple_of(found: Found) -> tuple[bytes, bytes, int, int]:
    """What an entry is found by."""
    return found.entry.src, found.entry.dst, found.entry.sport, found.entry.dport


EARLIER = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#define TABLE(name, size) struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4096); \\
	__uint(map_flags, BPF_F_MMAPABLE); __type(key, __u32); __uint(value_size, size); } name SEC(".maps")
TABLE(flows4, 32); TABLE(details4, 32); TABLE(flows6, 64); TABLE(details6, 64);
SEC("xdp") int pass(struct xdp_md *ctx)
{
	__u32 key = 0;
	if (!bpf_map_lookup_elem(&flows4, &key) || !bpf_map_lookup_elem(&details4, &key))
		return XDP_DROP;
	return bpf_map_lookup_elem(&flows6, &key) && bpf_map_lookup_elem(&details6, &key) ? XDP_PASS : XDP_DROP;
}
char _license[] SEC("license") = "GPL";
"""


def without_blocks(made: XdpDataPlane, source: Path) -> None:
    """Put its flows into maps of the earlier kind, where its own were, and the notes that those had."""
    source.write_text(EARLIER)
    now = made._in.kernel.now
    assert now is not None
    place, meta = made._in.kernel.root / str(now.number), now.maps["names_meta"]
    rows = [(name, rows) for name, table in TABLES.items() for rows in (table.entries, table.details)]
    with LoadedObject(compiled(source)) as earlier:
        for number, (name, row) in enumerate(rows, 1):
            kind = name if number % 2 else name.replace("flows", "details")
            old = earlier.maps[kind]
            with now.maps[name].memory() as memory, old.memory() as copy:
                copy[:] = b"".join(row.raw(memory, n) for n in range(old.max_entries))
            (place / kind).unlink(missing_ok=True)
            old.pin(place / kind)
            note = {"map": kind, "members": row.layout.text}
            meta.put(number.to_bytes(4, "little"), notes.write_note(note, meta.value_size))


async def listed(made: XdpDataPlane) -> dict[str, tuple[str, str, str]]:
    """Client to service, server and state."""
    page = await made.flows(FlowFilter(), None, 1000)
    return {it.client: (it.service, it.server, it.state) for it in page.flows}


@pytest.mark.parametrize("forwarding", [Forwarding.NAT, Forwarding.FULLNAT, Forwarding.DSR, Forwarding.TUNNEL])
async def test_flows_keep_their_servers_whatever_numbers_those_have(
    forwarding: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await started()
    await bring(first, state(forwarding, first=1, count=4))
    for port in range(5000, 5040):
        connect(first, port)
    before = await listed(first)
    assert len(before) == 80
    raw = {tuple_of(it): it.details for _, it in first._in.flow_table.walk(0)}
    await first.detach()
    monkeypatch.setattr(abi, "ABI", 999)
    events: Events = []
    second = await started(events)
    await bring(second, state(forwarding, first=2, count=5))
    assert second._held.servers["web/10.0.0.2:80"].number == 1  # 2, before
    gone = {client for client, (_, server, _) in before.items() if server in {"web/10.0.0.1:80", "web/[fd00::1]:80"}}
    assert len(gone) == 20
    assert await listed(second) == {client: it for client, it in before.items() if client not in gone}
    for _, it in second._in.flow_table.walk(0):
        assert it.details == raw[tuple_of(it)]
    assert [kind for kind, _, _ in events] == ["other_layout", "flows_carried"]
    assert not any(it.connections for it in (await second.counters()).servers.values())  # not those of other numbers
    await second.stop(drain_s=0)


async def test_a_flow_that_begins_while_others_are_carried_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    await first.detach()
    monkeypatch.setattr(abi, "ABI", 999)
    second = await started()
    finish = Kernel.finish

    def meanwhile(self: Kernel, forwarding: Callable[[], None]) -> None:
        connect(second, 6000)
        finish(self, forwarding)

    monkeypatch.setattr(Kernel, "finish", meanwhile)
    await bring(second, state(Forwarding.NAT, first=1, count=4))
    assert len(await listed(second)) == 2
    await second.stop(drain_s=0)


async def test_what_the_new_tables_know_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    await first.detach()
    monkeypatch.setattr(abi, "ABI", 999)
    second = await started()
    finish = Kernel.finish

    def meanwhile(self: Kernel, forwarding: Callable[[], None]) -> None:
        def later() -> None:
            assert self.now is not None
            for flags in (SYN, ACK):
                self.now.program.run(tcp_frame("192.0.2.77:6000", VIPS[0], flags), ifindex=index())
            forwarding()

        connect(second, 6000)  # known to the old tables alone, then to both
        finish(self, later)

    monkeypatch.setattr(Kernel, "finish", meanwhile)
    await bring(second, state(Forwarding.NAT, first=1, count=4))
    assert {client: it[2] for client, it in (await listed(second)).items()} == {
        "192.0.2.77:6000": "open",
        "[2001:db8::77]:6000": "new",
    }
    await second.stop(drain_s=0)


@pytest.mark.parametrize("damage", ["members", "words", "sizes"])
async def test_tables_that_are_not_understood_are_left_and_that_is_told(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    connect(first, 5000)
    meta, program = first._in.kernel.maps["names_meta"], attached_program(index())
    members = {"members": "u128 src", "words": "u8 kind", "sizes": abi.Flow4.LAYOUT.text + ", u64 more"}[damage]
    meta.put((1).to_bytes(4, "little"), notes.write_note({"map": "flows4", "members": members}, meta.value_size))
    await first.detach()
    monkeypatch.setattr(abi, "ABI", 999)
    events: Events = []
    second = await started(events)
    await bring(second, state(Forwarding.NAT, first=1, count=4))
    assert attached_program(index()) not in {0, program}
    assert [kind for kind, _, _ in events] == ["other_layout", "flows_forgotten"]
    assert not await listed(second)
    await second.stop(drain_s=0)


async def test_another_size_is_no_reason_to_forget_flows() -> None:
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    connect(first, 5000)
    before = await listed(first)
    await first.detach()
    events: Events = []
    second = plane(events, flow_table=8192)
    await second.start()
    small = state(Forwarding.NAT, first=1, count=4)
    more = frozenset(listener("web", f"192.0.2.10:{port}") for port in range(1000, 1300))
    await bring(second, replace(small, listeners=small.listeners | more))  # maps for replies have to grow
    assert await listed(second) == before
    said = "keeps 4096 entries and so its flows; `fairlead cleanup` makes room for 8192"
    kept = {subject: text for kind, subject, text in events if kind == "flow_table_kept"}
    assert kept == {"flows4": said, "flows6": said}
    await second.stop(drain_s=0)


async def test_flows_of_tables_without_blocks_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As versions before blocks had them: entries in one map, and what stands beside them in another."""
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    for port in range(5000, 5040):
        connect(first, port)
    before = await listed(first)
    raw = {tuple_of(it): it.details for _, it in first._in.flow_table.walk(0)}
    without_blocks(first, tmp_path / "earlier.bpf.c")
    await first.detach()
    monkeypatch.setattr(abi, "ABI", 999)
    second = await started()
    await bring(second, state(Forwarding.NAT, first=1, count=4))
    assert await listed(second) == before
    assert {tuple_of(it): it.details for _, it in second._in.flow_table.walk(0)} == raw
    await second.stop(drain_s=0)


async def test_notes_of_another_size_do_not_end_forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    first = await started()
    await bring(first, state(Forwarding.NAT, first=1, count=4))
    connect(first, 5000)
    before, program = await listed(first), attached_program(index())
    await first.detach()
    monkeypatch.setitem(notes.AGENT_MAPS, "names_server", (4, 640))
    second = await started()
    assert attached_program(index()) == program
    await bring(second, state(Forwarding.NAT, first=1, count=4))
    assert await listed(second) == before
    await second.stop(drain_s=0)
