# SPDX-License-Identifier: Apache-2.0
"""The tables of ``fairlead show``: what the API answers, as rows.

Invariant: a reason is shown by its own word, the same as in the API, the log and the metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairlead.cli.tables import Cell, Row, count, duration, heads, last, mark, number, octets, text

View = Mapping[str, Any]


def overview(services: Iterable[View], now: float) -> Iterator[Row]:
    """All services and their servers, in the columns of ``ipvsadm -Ln``, with health."""
    yield heads("Prot", "LocalAddress:Port", "Scheduler", ">", ">ActiveConn", ">Total", "State", "Service")
    yield heads("  ->", "RemoteAddress:Port", "Forward", ">Weight", ">ActiveConn", ">Total", "Health", "Server")
    for service in services:
        yield [
            text(service["protocol"].upper()), text(service["listen"][0]), text(service["scheduler"]), last(""),
            number(service["active"]), number(service["connections_total"]), mark(service["state"]),
            last(" ".join(filter(None, [service["name"], _rejected(service)]))),
        ]  # fmt: skip
        for address in service["listen"][1:]:
            yield [last(""), text(address), last("")]
        for server in service["servers"]:
            yield [
                last("  ->"), text(server["address"]), text(service["forwarding"].capitalize()), _weight(server),
                number(server["active"]), number(server["connections_total"]), mark(server["health"]),
                last(": ".join(filter(None, [server["name"], _why(server, now)]))),
            ]  # fmt: skip


def services(views: Iterable[View], _: float) -> Iterator[Row]:
    """One line per service."""
    yield heads("Service", "Listen", "Pool", "Scheduler", "Forward", "State", "Mode", "Up", ">Active", ">Total", ">In",
                ">Out", "Rejected")  # fmt: skip
    for view in views:
        up = sum(1 for server in view["servers"] if server["effective_weight"] > 0)
        yield [
            text(view["name"]), text(", ".join(view["listen"])), text(view["pool"]), text(view["scheduler"]),
            text(f"{view['forwarding']}/{view['engine']}"), mark(view["state"]), text(view["mode"]),
            text(f"{up}/{len(view['servers'])}"), number(view["active"]), number(view["connections_total"]),
            octets(view["bytes_in_total"]), octets(view["bytes_out_total"]), last(_rejected(view) or "-"),
        ]  # fmt: skip


def servers(views: Iterable[View], now: float) -> Iterator[Row]:
    """One line per server."""
    yield heads("Server", "Address", ">Weight", "Admin", "Health", "Since", ">Active", ">Max", ">Total", ">Failed",
                ">In", ">Out", "Why")  # fmt: skip
    for view in views:
        yield [
            text(view["key"]), text(view["address"]), _weight(view), mark(view["admin"]), mark(view["health"]),
            text(_ago(view["since_at"], now)), number(view["active"]),
            Cell(count(view["max_connections"]) if view["max_connections"] else "-", right=True),
            number(view["connections_total"]), number(view["connect_failures_total"]),
            octets(view["bytes_in_total"]), octets(view["bytes_out_total"]), last(_why(view, now)),
        ]  # fmt: skip


def health(views: Iterable[View], now: float) -> Iterator[Row]:
    """One line per probed target."""
    yield heads("Address", "Through", "Type", "Pools", "Verdict", "Since", ">Streak", ">Probes", ">Failures", "Last",
                "Took", "Why")  # fmt: skip
    for view in views:
        took = view["last_duration_s"]
        yield [
            text(view["address"]), text(view["through"]), text(view["type"]), text(",".join(view["pools"])),
            mark(view["verdict"]),
            text(_ago(view["since_at"], now)), number(view["streak"]), number(view["probes_total"]),
            number(view["failures_total"]), text(_ago(view["last_probe_at"], now)),
            text(None if took is None else duration(took)), last(_reason(view["reason"], view["detail"])),
        ]  # fmt: skip


def vips(views: Iterable[View], now: float) -> Iterator[Row]:
    """One line per VIP."""
    yield heads("Vip", "Interface", "Owner", "State", "Here", "Since", "Active", "Answered by", "Why")
    for view in views:
        answered = ", ".join(view["answered_by"])
        yield [
            text(view["vip"]), text(view["interface"]), text(view["owner"]), mark(view["state"]),
            text("yes" if view["held"] else "no"), text(_ago(view["since_at"], now)), text(view["active"]),
            Cell(answered or "-", role="bad" if view["conflict"] else ""), last(view["detail"]),
        ]  # fmt: skip


def vrrp(views: Iterable[View], now: float) -> Iterator[Row]:
    """One line per VRRP instance."""
    yield heads("Instance", "Interface", ">Vrid", "State", ">Priority", "Since", "Active", ">Moves", ">Sent", ">Heard",
                ">Ignored", "Why")  # fmt: skip
    for view in views:
        yield [
            text(view["name"]), text(view["interface"]), number(view["vrid"]), mark(view["state"]),
            Cell(str(view["priority"]), right=True), text(_ago(view["since_at"], now)), text(view["active"]),
            number(view["transitions_total"]), number(view["sent_total"]), number(view["received_total"]),
            number(sum(view["invalid"].values())), last(view["why"]),
        ]  # fmt: skip


def connections(views: Iterable[View], _: float) -> Iterator[Row]:
    """One line per connection."""
    for view in views:
        yield [
            text(view["service"]), text(view["client"]), text(view["vip"]), text(view["server"]), text(view["state"]),
            Cell(duration(view["age_s"]), right=True), Cell(duration(view["idle_s"]), right=True),
            octets(view["bytes_in"]), octets(view["bytes_out"]), last(view["worker"]),
        ]  # fmt: skip


EVENT_HEADS = heads("Time", "Kind", "Subject", "Message")
CONNECTION_HEADS = heads("Service", "Client", "Vip", "Server", "State", ">Age", ">Idle", ">In", ">Out", "Worker")


def events(views: Iterable[View], _: float) -> Iterator[Row]:
    """One line per event, in local time."""
    for view in views:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view["at"]))
        yield [text(at), text(view["kind"]), text(view["subject"]), last(view["message"])]


def status(view: View, now: float) -> Iterator[Row]:
    """The daemon at a glance, and its workers."""
    reload_word = "ok" if view["last_reload_ok"] else f"failed: {view['last_reload_error']}"
    converged = "yes" if view["converged"] else "no"
    yield [Cell("fairlead", role="head"), last(f"{view['version']}, process {view['pid']}")]
    yield [Cell("up", role="head"), last(duration(now - view["started_at"]))]
    yield [Cell("configuration", role="head"), last(view["config_file"] or "from the command line")]
    yield [Cell("digest", role="head"), last(view["config_digest"])]
    yield [Cell("loaded", role="head"), last(f"{_ago(view['last_reload_at'], now)} ago, {reload_word}")]
    pending = [f": {view['pending_error']}"] if view["pending_error"] else []
    yield [Cell("in step", role="head"), last("".join([converged, *pending]))]
    yield [Cell("drift repairs", role="head"), last(count(view["drift_repairs_total"]))]
    for worker in view["workers"]:
        accepting = "accepting" if worker["accepting"] else "not accepting"
        yield [
            Cell(f"worker {worker['slot']}", role="head"),
            last(
                f"process {worker['pid']}, {count(worker['active'])} connections, {accepting}, descriptors "
                f"{worker['descriptors_used']}/{worker['descriptors_limit']}, "
                f"{count(worker['accept_pauses_total'])} pauses"
            ),
        ]


def _weight(server: View) -> Cell:
    used, configured = server["effective_weight"], server["weight"]
    return Cell(str(used) if used == configured else f"{used}/{configured}", right=True)


def _why(server: View, now: float) -> str:
    said = []
    if server["idle_reason"] and server["idle_reason"] != "down":
        deadline = server["ejected_until_at" if server["idle_reason"] == "ejected" else "drain_deadline_at"]
        left = f" ({duration(max(deadline - now, 0))} left)" if deadline is not None else ""
        agent = f" ({server['agent']})" if server["idle_reason"] == "agent" else ""
        said.append(server["idle_reason"] + left + agent)
    if server["share_reason"] and not server["idle_reason"]:
        said.append(f"{server['share_reason']} ({server['share']}%)")
    if server["down_reason"]:
        said.append(_reason(server["down_reason"], server["detail"]))
    return ", ".join(said)


def _reason(reason: str | None, detail: str) -> str:
    if reason is None:
        return ""
    return f"{reason} ({detail})" if detail and detail != reason else reason


def _rejected(service: View) -> str:
    listed = ", ".join(f"{reason} {count(n)}" for reason, n in service["rejected"].items() if n)
    return f"({listed})" if listed else ""


def _ago(moment: float | None, now: float) -> str | None:
    return None if moment is None else duration(max(now - moment, 0))
