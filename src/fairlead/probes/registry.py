# SPDX-License-Identifier: Apache-2.0
"""Every type of probe under its name, and the one function that runs an attempt.

Invariants: ``probe`` never raises (but passes cancellation on), never takes much longer than the monitor's timeout,
and leaves nothing behind. A new type is one file with one coroutine and one line here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from fairlead.errors import FairleadError, OffLink
from fairlead.model.health import ProbeResult, ProbeTarget, Way
from fairlead.model.pool import MonitorType
from fairlead.model.reasons import DownReason
from fairlead.probes.agent import agent
from fairlead.probes.deadline import Deadline
from fairlead.probes.dns import dns
from fairlead.probes.exec import execute
from fairlead.probes.grpc import grpc
from fairlead.probes.http import http, https
from fairlead.probes.icmp import icmp
from fairlead.probes.outcome import Passed, ProbeFailed, printable
from fairlead.probes.tcp import tcp
from fairlead.probes.tls import tls
from fairlead.probes.udp import udp

Attempt = Callable[[ProbeTarget, Deadline], Awaitable[str | Passed]]
"""Returns what it found when it passed, raises ProbeFailed when it did not."""

ATTEMPTS: Mapping[MonitorType, Attempt] = MappingProxyType(
    {
        MonitorType.TCP: tcp,
        MonitorType.TLS: tls,
        MonitorType.HTTP: http,
        MonitorType.HTTPS: https,
        MonitorType.UDP: udp,
        MonitorType.DNS: dns,
        MonitorType.ICMP: icmp,
        MonitorType.GRPC: grpc,
        MonitorType.EXEC: execute,
        MonitorType.AGENT: agent,
    }
)


# How attempts end whose packets may not even have left: nobody knows the server's link address, for one.
_UNANSWERED = frozenset({DownReason.TIMEOUT, DownReason.UNREACHABLE, DownReason.LOCAL_ERROR})


class Ways(Protocol):
    """Who lets marked packets take the way of a service's; the data plane."""

    def mark_of(self, way: Way) -> int:
        """What packets bear that take this way.

        Raises:
            OffLink: They do not get to the server by it.
            FairleadError: They cannot take it; with what to do.
        """

    def packets_of(self, way: Way) -> int:
        """How many packets have taken it so far."""


async def probe(target: ProbeTarget, ways: Ways | None = None) -> ProbeResult:
    """One attempt at ``target``, within its monitor's timeout; ``ways`` for those that take a service's way."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    deadline = Deadline(target.monitor.timeout_s)
    reason: DownReason | None = None
    found: str | Passed
    try:
        found = await (_attempt(target)(target, deadline) if target.way is None else _by_way(target, deadline, ways))
    except ProbeFailed as failure:
        reason, found = failure.reason, failure.detail
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes provoke must not end the health checking
        reason, found = DownReason.LOCAL_ERROR, f"this node: {type(error).__name__}: {printable(str(error))}"
    finally:
        deadline.close()
    told = found if isinstance(found, Passed) else Passed(found)
    passage = target.monitor.through
    detail = told.detail if passage is None else f"through {passage.vip}: {told.detail}"
    return ProbeResult(reason is None, reason, detail, loop.time() - started, told.certificate_until, told.report)


async def _by_way(target: ProbeTarget, deadline: Deadline, ways: Ways | None) -> str | Passed:
    """An attempt by the way of a service; one that was answered without taking it has found out nothing.

    Raises:
        ProbeFailed: The attempt failed, or this node cannot send by that way.
    """
    way = target.way
    if way is None or ways is None:
        raise ProbeFailed(DownReason.LOCAL_ERROR, "this node: nothing here can send by the way of the service")
    failure: ProbeFailed | None = None
    found: str | Passed = ""
    try:
        mark, before = ways.mark_of(way), ways.packets_of(way)
        try:
            found = await _attempt(target)(replace(target, mark=mark), deadline)
        except ProbeFailed as failed:
            failure = failed
        beside = ways.packets_of(way) == before
    except OffLink as error:
        raise ProbeFailed(DownReason.OFF_LINK, printable(error.needs, 200)) from error
    except FairleadError as error:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"this node: {printable(str(error), 200)}") from error
    if beside and (failure is None or failure.reason not in _UNANSWERED):
        raise ProbeFailed(
            DownReason.LOCAL_ERROR,
            "this node: no packet of the probe took the way of the service; another tc program comes before fairlead's "
            "(bpftool net show)",
        )
    if failure is not None:
        raise failure
    return found


def _attempt(target: ProbeTarget) -> Attempt:
    kind = target.monitor.type
    if kind not in ATTEMPTS:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"health type {kind} is not supported by this version")
    return ATTEMPTS[kind]
