# SPDX-License-Identifier: Apache-2.0
"""/metrics, read back by the parser of prometheus-client."""

from __future__ import annotations

import re

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fairlead.model.views import HealthView
from support.api import CLIENT, Serving, server_view


def scrape(daemon: Serving) -> str:
    status, text, response = daemon.ask("GET", "/metrics")
    assert status == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return str(text)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values; a repeated one fails."""
    found: dict[tuple[str, ...], float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.values()))
            assert key not in found, f"{key} occurs twice"
            found[key] = sample.value
    return found


def test_values_are_those_of_the_views(daemon: Serving) -> None:
    found = samples(scrape(daemon))
    for key, value in {
        ("fairlead_build_info", "0.1.0"): 1,
        ("fairlead_ready",): 1,
        ("fairlead_converged",): 1,
        ("fairlead_start_time_seconds",): 1_700_000_000,
        ("fairlead_drift_repairs_total",): 3,
        ("fairlead_config_last_reload_success",): 1,
        ("fairlead_config_last_reload_timestamp_seconds",): 1_700_000_001,
        ("fairlead_worker_active_connections", "0"): 12,
        ("fairlead_worker_accepting", "1"): 1,
        ("fairlead_worker_descriptors_used", "0"): 40,
        ("fairlead_worker_descriptors_limit", "0"): 1024,
        ("fairlead_worker_accept_pauses_total", "1"): 1,
        ("fairlead_service_state", "web", "degraded"): 1,
        ("fairlead_service_state", "web", "up"): 0,
        ("fairlead_service_active_connections", "web"): 24,
        ("fairlead_service_connections_total", "web"): 3000,
        ("fairlead_service_bytes_total", "web", "in"): 8192,
        ("fairlead_service_bytes_total", "web", "out"): 10_000_000,
        ("fairlead_service_rejected_total", "web", "no_server"): 3,
        ("fairlead_server_up", "web", "web-1"): 1,
        ("fairlead_server_up", "web", "127.0.0.1:9003"): 0,
        ("fairlead_server_admin_state", "web", "web-1", "ready"): 1,
        ("fairlead_server_admin_state", "web", "web-1", "drain"): 0,
        ("fairlead_server_effective_weight", "web", "web-2"): 2,
        ("fairlead_server_active_connections", "web", "web-1"): 12,
        ("fairlead_server_connections_total", "web", "web-1"): 1500,
        ("fairlead_server_connect_failures_total", "web", "web-1"): 2,
        ("fairlead_server_bytes_total", "web", "web-1", "out"): 5_000_000,
        ("fairlead_probe_up", "", "127.0.0.1:9001", "http"): 1,
        ("fairlead_probe_duration_seconds", "", "127.0.0.1:9001", "http"): 0.0012,
        ("fairlead_probes_total", "", "127.0.0.1:9001", "http"): 9,
        ("fairlead_probe_failures_total", "", "127.0.0.1:9001", "http"): 1,
        ("fairlead_vip_owner", "192.0.2.10/24", "eth0"): 1,
        ("fairlead_vip_conflict", "192.0.2.10/24", "eth0"): 1,
        ("fairlead_vip_conflicts_total", "192.0.2.10/24", "eth0"): 2,
        ("fairlead_vip_restored_total", "192.0.2.10/24", "eth0"): 1,
        ("fairlead_vrrp_state", "pair", "active"): 1,
        ("fairlead_vrrp_state", "pair", "backup"): 0,
        ("fairlead_vrrp_priority", "pair"): 100,
        ("fairlead_vrrp_transitions_total", "pair"): 3,
        ("fairlead_vrrp_packets_sent_total", "pair"): 700,
        ("fairlead_vrrp_packets_received_total", "pair"): 20,
        ("fairlead_vrrp_conflict_total", "pair"): 4,
        ("fairlead_vrrp_packets_invalid_total", "eth0", "ttl"): 5,
    }.items():
        assert found[key[0], *sorted(key[1:])] == value, key
    assert found["fairlead_process_open_fds",] > 3


def test_names_and_help_follow_the_conventions(daemon: Serving) -> None:
    text = scrape(daemon)
    families = list(parse(text))
    assert len(families) > 30
    for family in families:
        assert re.fullmatch(r"fairlead_[a-z][a-z0-9_]*", family.name)
        assert len(family.documentation) > 10, family.name
        assert family.type in {"gauge", "counter"}, family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            assert not re.search(r"_(ms|milliseconds|kb|percent)\b", sample.name)
    assert text.count("# HELP ") == text.count("# TYPE ") == len(families)


def test_no_client_becomes_a_label(daemon: Serving) -> None:
    assert CLIENT in str(daemon.ask("GET", "/v1/connections")[1])
    assert CLIENT not in scrape(daemon)
    labels = {name for family in parse(scrape(daemon)) for sample in family.samples for name in sample.labels}
    assert labels == {
        "version",
        "worker",
        "service",
        "state",
        "direction",
        "reason",
        "pool",
        "server",
        "address",
        "type",
        "through",
        "vip",
        "interface",
        "instance",
    }


def test_monitors_that_share_an_address_share_a_sample(daemon: Serving) -> None:
    """A pool may probe one port by http twice; two samples with the same labels would void the scrape."""
    first = HealthView("[::1]:80", "http", ("a",), "up", 0, None, "", 0, 1, 0.25, 10, 1)
    second = HealthView("[::1]:80", "http", ("b",), "down", 0, "refused", "", 0, 1, None, 5, 4)
    daemon.facade.health = lambda: (first, second)  # type: ignore[method-assign]
    found = samples(scrape(daemon))
    assert found["fairlead_probe_up", "", "[::1]:80", "http"] == 0
    assert found["fairlead_probe_duration_seconds", "", "[::1]:80", "http"] == 0.25
    assert found["fairlead_probes_total", "", "[::1]:80", "http"] == 15
    assert found["fairlead_probe_failures_total", "", "[::1]:80", "http"] == 5


def test_the_way_of_a_service_is_a_target_of_its_own(daemon: Serving) -> None:
    direct = HealthView("[::1]:80", "tcp", ("a",), "up", 0, None, "", 0, 1, 0.25, 10, 1)
    by_way = HealthView("[::1]:80", "tcp", ("a",), "down", 0, "timeout", "", 0, 1, None, 5, 4, through="192.0.2.9:80")
    daemon.facade.health = lambda: (direct, by_way)  # type: ignore[method-assign]
    found = samples(scrape(daemon))
    assert found["fairlead_probe_up", "", "[::1]:80", "tcp"] == 1
    assert found["fairlead_probe_up", "192.0.2.9:80", "[::1]:80", "tcp"] == 0


def test_a_server_without_probes_counts_as_up(daemon: Serving) -> None:
    daemon.facade.servers_by_key["web/web-1"] = server_view("web-1", 9001, health="none")
    assert samples(scrape(daemon))["fairlead_server_up", "web", "web-1"] == 1


def test_openmetrics_for_those_who_ask(daemon: Serving) -> None:
    _, text, response = daemon.ask("GET", "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(text))) > 30  # type: ignore[no-untyped-call]
