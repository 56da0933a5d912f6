# SPDX-License-Identifier: Apache-2.0
"""The benchmark between network namespaces, in blocks too short to say anything, from end to end."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bench.machine import split_cpus
from bench.net.contenders import enter_all
from bench.net.course import course
from bench.net.report import AGAIN, CONNECTED, CONNECTIONS, FORWARDING, FRAMES, remarks
from bench.net.suite import SUITES, TINY, measure, servers
from bench.report import table
from bench.rows import Tools
from bench.run import compile_load
from support.netns import inside, ip

pytestmark = [pytest.mark.root, pytest.mark.system]


def namespaces() -> set[str]:
    """Those of a benchmark in this process."""
    return {name for name in ip("netns", "list").split() if name.startswith(f"flb{os.getpid():x}")}


@pytest.fixture
def tools(runtime: Path) -> Tools:
    return Tools(compile_load(runtime), split_cpus(1))


# With others on the machine a proxy may answer nothing in a block of a tenth of a second.
@pytest.mark.serial
@pytest.mark.timeout(120)
def test_every_contender_gets_every_figure_and_nothing_is_left(tools: Tools, runtime: Path) -> None:
    results = measure(tools, runtime, SUITES, (), TINY)
    assert results.failures == []
    for layout, names in ((FRAMES, FORWARDING), (CONNECTIONS, CONNECTED)):
        for name in (*names, AGAIN):
            missing = [row.name for row in layout.rows if not results.speed(name, row.name) > 0]
            by_thread = [row for row in missing if row.endswith("cpu_us")]  # a single cable has no balancer to charge
            assert missing == (by_thread if name == "back-to-back" else []), name
        heading = table(results, layout).splitlines()[0]
        assert all(name in heading.split() for name in names)
    assert "GRO are off" in "\n".join(remarks(results, tools.cpus))
    assert not namespaces()


def test_no_connection_waits_where_the_next_contender_would_meet_it(tools: Tools, runtime: Path) -> None:
    with course(tools.cpus) as made, servers(tools, made, runtime):
        (entrant,) = enter_all(made, ("direct",), runtime)
        assert tools.run(entrant.contender, "connect", 0.1, 4)["done"] > 0
        for namespace in (made.clients, made.servers, str(entrant.lane.balancer)):
            with inside(namespace):
                sockets = Path("/proc/thread-self/net/sockstat").read_text()
            assert re.search(r"^TCP: .* tw 0 ", sockets, re.MULTILINE), sockets


def test_a_course_goes_also_when_something_fails(tools: Tools) -> None:
    def fail() -> None:
        with course(tools.cpus) as made:
            made.equip(made.lane())
            assert len(namespaces()) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not namespaces()
