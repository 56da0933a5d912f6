# SPDX-License-Identifier: Apache-2.0
"""Every type of probe under its name, and the one function that runs an attempt.

Invariants: ``probe`` never raises (but passes cancellation on), never takes much longer than the monitor's timeout,
and leaves nothing behind. A new type is one file with one coroutine and one line here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from fairlead.model.health import ProbeResult, ProbeTarget
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


async def probe(target: ProbeTarget) -> ProbeResult:
    """One attempt at ``target``, within its monitor's timeout."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    deadline = Deadline(target.monitor.timeout_s)
    reason: DownReason | None = None
    found: str | Passed
    try:
        found = await _attempt(target)(target, deadline)
    except ProbeFailed as failure:
        reason, found = failure.reason, failure.detail
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes provoke must not end the health checking
        reason, found = DownReason.LOCAL_ERROR, f"this node: {type(error).__name__}: {printable(str(error))}"
    finally:
        deadline.close()
    told = found if isinstance(found, Passed) else Passed(found)
    return ProbeResult(reason is None, reason, told.detail, loop.time() - started, told.certificate_until, told.report)


def _attempt(target: ProbeTarget) -> Attempt:
    kind = target.monitor.type
    if kind not in ATTEMPTS:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"health type {kind} is not supported by this version")
    return ATTEMPTS[kind]
