# SPDX-License-Identifier: Apache-2.0
"""Which server a new flow gets, against an independent reading of the rules."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from fairlead.model.reasons import RejectReason
from support.peers import Server
from support.wait import until
from support.worker import SEED, Worker
from support.worker_abi import Scheduler

MASK = (1 << 64) - 1


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK


def siphash13(key: bytes, message: bytes) -> int:
    """SipHash-1-3 as in the paper, with its c = 1 and d = 3."""
    k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def sip_round() -> None:
        v[0] = (v[0] + v[1]) & MASK
        v[1] = _rotate(v[1], 13) ^ v[0]
        v[0] = _rotate(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = _rotate(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = _rotate(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = _rotate(v[1], 17) ^ v[2]
        v[2] = _rotate(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        sip_round()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        sip_round()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def splitmix(state: int) -> int:
    state &= MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def flow_hash(client: tuple[str, int], vip: tuple[str, int]) -> int:
    addresses = b"".join(ipaddress.ip_address(host).packed for host, _ in (client, vip))
    ports = client[1].to_bytes(2, "big") + vip[1].to_bytes(2, "big")
    return siphash13(SEED, addresses + ports + bytes([6, 0, 0, 0]))


def slot(h: int, size: int) -> int:
    return ((h >> 32) * size) >> 32


def probes(h: int, size: int) -> Iterator[int]:
    yield slot(h, size)
    for k in range(1, 16):
        yield slot(splitmix(h + k * 0x9E3779B97F4A7C15), size)


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server()) for _ in range(5)]


def server_of(worker: Worker, client: tuple[str, int]) -> int:
    return next((flow.server for flow in worker.flows() if flow.client == client), 0)


def given(worker: Worker, where: tuple[str, int], n: int, source: str = "") -> list[int]:
    """Dial n times, keep all; the server of each flow in order."""
    chosen = []
    for _ in range(n):
        client = worker.dial(where, source=source).getsockname()[:2]
        chosen.append(until(partial(server_of, worker, client), 5, "the flow has a server"))
    return chosen


def hold(worker: Worker, servers: list[Server], *, weights: list[int] | None = None) -> list[int]:
    for number, server in enumerate(servers, 1):
        worker.server(number, server.where, weight=weights[number - 1] if weights else 1)
    return list(range(1, len(servers) + 1))


def test_the_siphash_of_this_test_is_the_interpreters() -> None:
    """CPython hashes bytes by SipHash-1-3, with a key of zeros under PYTHONHASHSEED=0."""
    assert sys.hash_info.algorithm == "siphash13"
    code = "print(*(hash(bytes(range(n))) & (1 << 64) - 1 for n in range(1, 60)))"
    output = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    assert [int(word) for word in output.split()] == [siphash13(bytes(16), bytes(range(n))) for n in range(1, 60)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_maglev_follows_the_flow_hash(worker: Worker, servers: list[Server], host: str) -> None:
    members = hold(worker, servers)
    slots = random.Random(7).choices(range(5), k=1009)
    worker.table(1, members, slots)
    worker.service(scheduler=Scheduler.MAGLEV)
    where = worker.listen(host=host)
    for _ in range(40):
        worker.dial(where)
    until(lambda: len(worker.flows()) == 40, 5, "all flows are there")
    for flow in worker.flows():
        assert flow.server == members[slots[slot(flow_hash(flow.client, flow.vip), 1009)]]
    assert len({flow.server for flow in worker.flows()}) == 5


def test_maglev_probes_on_when_servers_are_full(worker: Worker, servers: list[Server]) -> None:
    members = hold(worker, servers)
    for full in (1, 2, 3):
        worker.server(full, servers[full - 1].where, max_connections=1)
        position = worker.memory.at("server", "shared_server", full)
        worker.memory.put(position, "shared_server", active=1)
    slots = random.Random(7).choices(range(5), k=1009)
    worker.table(1, members, slots)
    worker.service(scheduler=Scheduler.MAGLEV)
    where = worker.listen()
    for _ in range(40):
        worker.dial(where)
    until(lambda: len(worker.flows()) == 40, 5, "all flows are there")
    for flow in worker.flows():
        order = (members[slots[at]] for at in probes(flow_hash(flow.client, flow.vip), 1009))
        assert flow.server == next(number for number in order if number > 3)


def test_sh_follows_the_source_alone(worker: Worker, servers: list[Server]) -> None:
    members = hold(worker, servers)
    slots = random.Random(9).choices(range(5), k=251)
    worker.table(1, members, slots)
    worker.service(scheduler=Scheduler.SH)
    where = worker.listen()
    for last in range(1, 20):
        source = f"127.0.1.{last}"
        message = ipaddress.ip_address(source).packed + bytes(4)
        expected = members[slots[slot(siphash13(SEED, message), 251)]]
        assert given(worker, where, 2, source) == [expected] * 2


def test_rr_takes_turns_over_all_workers(start: Callable[..., Worker], servers: list[Server]) -> None:
    first = start(slot=0)
    second = start(slot=1, memory=first.memory)
    wheres = []
    for worker in (first, second):
        members = hold(worker, servers[:3])
        worker.table(1, members)
        worker.service(scheduler=Scheduler.RR)
        wheres.append(worker.listen())
    turns = [
        given(worker, where, 1)[0] for _ in range(6) for worker, where in ((first, wheres[0]), (second, wheres[1]))
    ]
    assert turns == [1, 2, 3] * 4


def test_wrr_follows_the_sequence_of_the_table(worker: Worker, servers: list[Server]) -> None:
    members = hold(worker, servers[:3])
    worker.table(1, members, [0, 0, 1, 0, 2, 0])
    worker.service(scheduler=Scheduler.WRR)
    assert given(worker, worker.listen(), 12) == [1, 1, 2, 1, 3, 1] * 2


def test_random_reaches_every_server(worker: Worker, servers: list[Server]) -> None:
    worker.table(1, hold(worker, servers))
    worker.service(scheduler=Scheduler.RANDOM)
    chosen = Counter(given(worker, worker.listen(), 100))
    assert set(chosen) == {1, 2, 3, 4, 5}
    assert max(chosen.values()) < 50


def test_lc_fills_the_emptiest(worker: Worker, servers: list[Server]) -> None:
    worker.table(1, hold(worker, servers[:3]))
    worker.service(scheduler=Scheduler.LC)
    where = worker.listen()
    position = worker.memory.at("server", "shared_server", 2)
    worker.memory.put(position, "shared_server", active=4)  # as if other workers held four
    assert Counter(given(worker, where, 8)) == {1: 4, 3: 4}
    assert Counter(given(worker, where, 3)) == {1: 1, 2: 1, 3: 1}


def test_wlc_fills_by_weight(worker: Worker, servers: list[Server]) -> None:
    worker.table(1, hold(worker, servers[:3], weights=[1, 2, 5]))
    worker.service(scheduler=Scheduler.WLC)
    assert Counter(given(worker, worker.listen(), 16)) == {1: 2, 2: 4, 3: 10}


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_full_servers_are_passed_over_and_a_full_pool_refuses(
    worker: Worker, servers: list[Server], scheduler: Scheduler
) -> None:
    for number, server in enumerate(servers, 1):
        worker.server(number, server.where, max_connections=2)
    worker.table(1, [1, 2, 3, 4, 5])
    worker.service(scheduler=scheduler)
    where = worker.listen()
    assert Counter(given(worker, where, 10)) == dict.fromkeys(range(1, 6), 2)
    assert worker.refuses(where)
    assert worker.rejected(RejectReason.SERVERS_FULL) == 1
    assert worker.memory.service()["active"] == 10


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_members_without_a_slot_get_nothing(worker: Worker, servers: list[Server], scheduler: Scheduler) -> None:
    worker.table(1, hold(worker, servers), [1, 3, 1, 3])
    worker.service(scheduler=scheduler)
    assert set(given(worker, worker.listen(), 12)) <= {2, 4}


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_a_failed_server_is_not_tried_again_while_others_are_left(
    worker: Worker, servers: list[Server], scheduler: Scheduler
) -> None:
    members = hold(worker, servers)
    for dead in servers[:4]:
        dead.close()
    worker.table(1, members)
    worker.service(scheduler=scheduler, retries=4)
    where = worker.listen()
    for _ in range(4):
        worker.pair(where, servers[4])
    assert all(worker.memory.server(number)["connect_failures"] <= 4 for number in members)
    assert all(flow.server == 5 for flow in worker.flows())
