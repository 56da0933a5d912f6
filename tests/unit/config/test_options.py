# SPDX-License-Identifier: Apache-2.0
"""One service from the command line, and the reference page."""

from __future__ import annotations

import pytest

from fairlead.config import from_options, reference
from fairlead.config.schema.base import Part
from fairlead.config.schema.document import NAMED
from fairlead.config.schema.health import MONITORS
from fairlead.config.schema.node import Settings
from fairlead.config.validate import parts
from fairlead.errors import ConfigError
from fairlead.model.pool import HealthMonitor, MonitorType
from fairlead.model.service import Scheduler


def test_one_service_and_one_pool() -> None:
    read = from_options(["127.0.0.1:8080", "[::1]:8080"], ["127.0.0.1:9001", "127.0.0.1:9002"])
    assert [str(listen) for listen in read.services["main"].listen] == ["127.0.0.1:8080", "[::1]:8080"]
    assert read.services["main"].pool == "main"
    assert [server.name for server in read.pools["main"].servers] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert read.pools["main"].monitors == (HealthMonitor(MonitorType.TCP),)
    assert len(read.digest) == 64


def test_further_options() -> None:
    read = from_options(["127.0.0.1:1"], ["127.0.0.1:2"], scheduler="rr", health="none", workers="2")
    assert (read.services["main"].scheduler, read.pools["main"].monitors, read.workers) == (Scheduler.RR, (), 2)
    other = from_options(["127.0.0.1:1"], ["127.0.0.1:2"], scheduler="rr", health="http", workers="2")
    assert other.pools["main"].monitors[0].type is MonitorType.HTTP
    assert other.digest != read.digest


def test_problems_name_their_option() -> None:
    with pytest.raises(ConfigError) as caught:
        from_options(["127.0.0.1"], ["x:1", "127.0.0.1:2"], scheduler="rrr", health="dns", workers="0")
    assert [(p.file, p.line, p.column) for p in caught.value.problems] == [("<command line>", 0, 0)] * 5
    assert {p.path for p in caught.value.problems} == {"--listen", "--server", "--scheduler", "--health", "--workers"}


def test_nothing_given() -> None:
    with pytest.raises(ConfigError) as caught:
        from_options([], [])
    assert {str(p) for p in caught.value.problems} == {
        "<command line>: --listen: is required",
        "<command line>: --server: is required",
    }


def test_the_reference_has_a_row_for_every_key() -> None:
    page = reference.markdown()
    models: list[type[Part]] = [*NAMED.values(), Settings, *MONITORS.values()]
    seen = 0
    while models:
        model = models.pop()
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key} has no description"
            assert f"| `{key}` |" in page or any(parts(field.annotation)), f"{model.__name__}.{key}"
            models += [part for part in parts((field.annotation, *field.metadata)) if part not in MONITORS.values()]
            seen += 1
    assert seen > 100
