# SPDX-License-Identifier: Apache-2.0
"""10,000 services of ten servers each: what one change costs the data plane, and what reading them back does."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fairlead.dataplane.xdp import kernel
from fairlead.model.service import Forwarding
from fairlead.model.state import DeleteTable, ForwardingState, ObservedState, Plan, PutService, PutTable
from fairlead.policy import tables
from fairlead.policy.plan import plan
from support.models import forwarding_state, listener, server_spec, service_spec, table_spec
from support.xdp import ip, own_namespace
from support.xdp_plane import opened_plane

pytestmark = [pytest.mark.root, pytest.mark.serial, pytest.mark.timeout(300)]
SERVICES, SERVERS, CHANGES = 10_000, 10, 500
CHANGE_MS = 5.0


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        ip("link", "set", "lo", "up")
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        for name in ("eth0", "far0"):
            ip("link", "set", name, "up")
        ip("addr", "add", "10.0.0.1/8", "dev", "eth0")
        yield
        kernel.cleanup()


def many() -> ForwardingState:
    servers, recipes, services, listeners = [], [], [], []
    for number in range(SERVICES):
        net = f"10.{1 + number // 2500}.{number // 10 % 250}"
        addresses = [f"{net}.{number % 10 * 10 + n + 1}:8080" for n in range(SERVERS)]
        servers += [server_spec(f"web/{at}", at) for at in addresses]
        recipes.append(table_spec(dict.fromkeys(addresses, 1), size=1021))
        name = f"s{number}"
        services.append(service_spec(name, tables.digest(recipes[-1]), forwarding=Forwarding.NAT))
        listeners.append(listener(name, f"10.{100 + number // 2500}.{number // 10 % 250}.{number % 10 + 1}:80"))
    return forwarding_state(tuple(servers), tuple(recipes), tuple(services), tuple(listeners))


async def test_a_server_that_goes_down_among_a_hundred_thousand_costs_a_few_milliseconds() -> None:
    goal = many()
    specs = list(goal.services.values())
    async with opened_plane(flow_table=65536, interfaces=("eth0",)) as made:
        started = time.process_time()
        await made.apply(plan(goal, ObservedState()))
        filled_s = time.process_time() - started
        gc.freeze()
        took = []
        for number in random.Random(4).sample(range(SERVICES), CHANGES):
            service = specs[number]
            assert service.table is not None
            before = goal.tables[service.table]
            assert before is not None
            after = replace(before, live=before.live - {before.members[0].key})
            digest = tables.digest(after)
            change = Plan(
                (PutTable(digest, after), PutService(replace(service, table=digest)), DeleteTable(service.table))
            )
            started = time.process_time()
            await made.apply(change)
            took.append((time.process_time() - started) * 1000)
        gc.unfreeze()
        took.sort()
        started = time.process_time()
        observed = await made.observe()
        observed_s = time.process_time() - started
        assert len(observed.services) == SERVICES
        median, late = took[CHANGES // 2], took[CHANGES * 99 // 100]
        sys.stdout.write(
            f"\nfilled in {filled_s:.1f} s, one change {median:.2f} ms (99th percentile {late:.2f} ms), "
            f"read back in {observed_s:.2f} s\n"
        )
        assert late < CHANGE_MS
