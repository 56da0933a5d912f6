# SPDX-License-Identifier: Apache-2.0
"""Counters that are made out of the kernel's rows when somebody asks for one."""

from __future__ import annotations

from struct import pack

import pytest

from fairlead.dataplane.base import ServerCounters, ServiceCounters
from fairlead.dataplane.xdp.held import ServerHeld, ServiceHeld
from fairlead.dataplane.xdp.rows import ServerRows, ServiceRows, Traffic
from support.models import server_spec, service_spec

CPUS = 3


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairlead.dataplane.xdp.rows.possible_cpus", lambda: CPUS)


def rows(count: int) -> Traffic:
    """Row N of CPU C has N * 100 + C * 10 connections, two more bytes in and four more out."""
    figures = [[n * 100 + cpu * 10 + member for member in range(5)] for n in range(count) for cpu in range(CPUS)]
    return Traffic(b"".join(pack("=5Q", *row) for row in figures))


def held(number: int) -> ServerHeld:
    return ServerHeld(number, server_spec("web/a", "10.0.0.1:80"), generation=number, address=bytes(16))


def test_the_figures_of_all_cpus_and_of_all_endpoints_of_a_key_are_added_up() -> None:
    found = ServerRows({"web/a": {held(1), held(3)}, "web/b": {held(2)}}, rows(4), {1: 5, 3: 7, 2: 1})
    assert found["web/b"] == ServerCounters(active=1, connections=630, bytes_in=636, bytes_out=642)
    assert found["web/a"] == ServerCounters(active=12, connections=330 + 930, bytes_in=336 + 936, bytes_out=342 + 942)
    assert dict(found) == {key: found[key] for key in ("web/a", "web/b")}
    assert "web/c" not in found
    with pytest.raises(KeyError):
        found["web/c"]


def test_what_came_after_the_rows_were_read_has_no_figures_yet() -> None:
    same_key = {"web/a": {held(1)}}
    found = ServerRows(same_key, rows(2), {})
    same_key["web/b"] = {held(2)}
    assert found["web/b"] == ServerCounters()
    assert found["web/a"].connections == 330


def test_services_have_the_figures_of_their_number() -> None:
    service = ServiceHeld(2, service_spec("s", None))
    found = ServiceRows({"s": service}, rows(3), {2: 4})
    assert found["s"] == ServiceCounters(4, 630, 636, 642)
    assert len(found) == 1
