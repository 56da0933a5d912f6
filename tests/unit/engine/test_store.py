# SPDX-License-Identifier: Apache-2.0
"""What survives the agent, and what must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.engine.store import Loss, Store
from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentAdvice
from fairlead.model.pool import AdminState, HealthMonitor, MonitorType
from fairlead.model.shared import Shared, shared
from fairlead.policy.derive import Departure, Ejection, Override, Runtime, targets
from support.models import DOWN, TCP_MONITOR, UP, configuration, pool, server, service

BOOT = "0b2f"


@pytest.fixture
def known() -> Configuration:
    agent = HealthMonitor(MonitorType.AGENT, port=9000)
    servers = (server("10.0.0.1:80"), server("10.0.0.2:80"))
    return configuration(service(), pool(*servers, monitors=(TCP_MONITOR,), agent=agent))


@pytest.fixture
def happened(known: Configuration) -> Runtime:
    asked = [target for target in targets(known, Runtime()) if target.monitor.type is MonitorType.AGENT]
    first, second = (target for target in targets(known, Runtime()) if target.monitor.type is not MonitorType.AGENT)
    return Runtime(
        health={first: UP, second: DOWN},
        overrides={"web/10.0.0.1:80": Override(AdminState.DRAIN, 7, AdminState.READY, 1)},
        drain_since={"web/10.0.0.1:80": 17.5},
        departures={"web/old": Departure("web", server("[2001:db8::1]:80", name="old"), 99.5, 12.0)},
        resting=frozenset({"web/10.0.0.1:80"}),
        rising={"web/10.0.0.2:80": 81.25},
        advice={asked[0]: AgentAdvice(50, AdminState.DRAIN, False, 30, "full")},
        ejections={"web/10.0.0.2:80": Ejection(70.5, 100.5, 1, 160.5)},
    )


def test_all_of_it_comes_back(tmp_path: Path, known: Configuration, happened: Runtime) -> None:
    store = Store(tmp_path / "state.json", BOOT)
    store.write(store.texts(happened))
    assert store.load(known) == happened


def test_what_changed_since_it_was_saved_comes_back_too(tmp_path: Path, known: Configuration) -> None:
    store, runtime = Store(tmp_path / "state.json", "boot"), Runtime(overrides=Shared())
    keys = [f"web/{number}" for number in range(1000)]
    for wish in (AdminState.DRAIN, AdminState.MAINT):
        for key in keys[::7]:
            override = Override(wish, None, AdminState.READY, 1)
            runtime = replace(runtime, overrides=shared(runtime.overrides).changed({key: override}))
        store.write(store.texts(runtime))
        assert store.load(known) == runtime
    store.write(store.texts(replace(runtime, overrides=shared(runtime.overrides).changed({}, keys[::14]))))
    found = store.load(known)
    assert isinstance(found, Runtime)
    assert found.overrides.keys() == set(keys[::7]) - set(keys[::14])


def test_nothing_there_is_no_loss(tmp_path: Path, known: Configuration) -> None:
    assert Store(tmp_path / "state.json", BOOT).load(known) is None


def test_after_a_boot_only_the_operators_wishes_hold(tmp_path: Path, known: Configuration, happened: Runtime) -> None:
    store = Store(tmp_path / "state.json", BOOT)
    store.write(store.texts(happened))
    assert Store(tmp_path / "state.json", "other").load(known) == Runtime(overrides=happened.overrides)


def test_f41_a_verdict_holds_only_for_the_same_check(tmp_path: Path, known: Configuration, happened: Runtime) -> None:
    store = Store(tmp_path / "state.json", BOOT)
    store.write(store.texts(happened))
    web = known.pools["web"]
    stricter = replace(web, monitors=(replace(TCP_MONITOR, timeout_s=0.1),))
    found = store.load(replace(known, pools={"web": stricter}))
    assert isinstance(found, Runtime)
    assert found.health == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format":2}',
        json.dumps(
            {"format": 1, "boot_id": BOOT, "health": 3, "overrides": {}, "drain_since": {}, "departures": {}}
        ).encode(),
        json.dumps(
            {
                "format": 1,
                "boot_id": BOOT,
                "health": {},
                "overrides": {"a": {"state": "gone"}},
                "drain_since": {},
                "departures": {},
            }
        ).encode(),
    ],
)
def test_a_broken_file_is_a_loss_and_no_crash(tmp_path: Path, known: Configuration, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    found = Store(path, BOOT).load(known)
    assert isinstance(found, Loss)
    assert str(path) in found.why
