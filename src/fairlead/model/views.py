# SPDX-License-Identifier: Apache-2.0
"""What the API shows: the engine fills these, the API serialises them field by field, the CLI prints them.

Times are seconds since the Unix epoch (``*_at``) or durations in seconds (``*_s``).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerView:
    """One real server of a pool."""

    key: str
    pool: str
    name: str
    address: str
    weight: int  # configured, or set at run time
    effective_weight: int  # what the scheduler uses now, rounded up; 0: no new flows
    backup: bool
    admin: str  # AdminState
    health: str  # "up" | "down" | "none" (not checked)
    idle_reason: str | None  # IdleReason: why it gets no new flows
    down_reason: str | None  # DownReason
    detail: str
    since_at: float  # of the present health verdict
    drain_deadline_at: float | None
    max_connections: int
    active: int
    connections_total: int
    connect_failures_total: int
    bytes_in_total: int  # client to server
    bytes_out_total: int
    share: int = 100  # per cent of its weight that it has for now
    share_reason: str | None = None  # ShareReason
    ejected_until_at: float | None = None  # passive checking took it out until then
    ejections_total: int = 0  # since the daemon's agent began
    agent: str | None = None  # what the agent on the server says; None: nobody asks it


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One virtual service."""

    name: str
    listen: tuple[str, ...]
    protocol: str
    pool: str
    forwarding: str
    engine: str
    scheduler: str
    state: str  # "up" | "degraded" | "down"
    mode: str  # "forward" | "reject" | "drop"
    active: int
    queued: int  # of the active ones: they wait for a server that is not full
    connections_total: int
    bytes_in_total: int
    bytes_out_total: int
    rejected: dict[str, int]  # RejectReason name in lower case -> count
    servers: tuple[ServerView, ...]


@dataclass(frozen=True, slots=True)
class HealthView:
    """One probed target."""

    address: str
    type: str
    pools: tuple[str, ...]
    verdict: str
    streak: int
    reason: str | None
    detail: str
    since_at: float
    last_probe_at: float | None
    last_duration_s: float | None
    probes_total: int
    failures_total: int
    certificate_until_at: float | None = None  # end of the server's certificate, as last seen
    through: str | None = None  # VIP and port of the service whose way its probes take


@dataclass(frozen=True, slots=True)
class FlowView:
    """One connection, as a worker sees it."""

    service: str
    server: str
    client: str
    vip: str
    state: str
    age_s: float
    idle_s: float
    bytes_in: int
    bytes_out: int
    worker: int


@dataclass(frozen=True, slots=True)
class FlowPage:
    """Some connections and where to go on; ``cursor`` None: that was all."""

    flows: tuple[FlowView, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class ExplainStep:
    """One step of a decision. ``step`` is a stable word, ``says`` one line for people."""

    step: str
    says: str


@dataclass(frozen=True, slots=True)
class ExplainView:
    """Where a flow goes and why.

    Attributes:
        service: None when nothing is offered there.
        server: Key of the server, None when there is none, or when it is not decided before the flow begins.
        without: Key of the server that is to be thought away, or None.
        instead: Key of the server that would take the flow then.
    """

    client: str
    vip: str
    protocol: str
    service: str | None
    server: str | None
    steps: tuple[ExplainStep, ...]
    without: str | None = None
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class EventView:
    """Something that happened. ``kind`` is a stable word, ``subject`` what it happened to."""

    id: int
    at: float
    kind: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class VipView:
    """One address that this node may own, and who else answers for it."""

    vip: str
    interface: str
    owner: str
    state: str  # VrrpState of its instance, "static", or "unknown": nobody decides about it yet
    held: bool  # it is on the interface of this node
    since_at: float  # of ``held``
    active: str | None  # address of the node that owns it by VRRP, as far as it is known
    answered_by: tuple[str, ...]  # MACs of others that answer for it
    conflict: bool  # more than one node answers for it
    conflicts_total: int
    restored_total: int  # times something else deleted it and it was put back
    detail: str


@dataclass(frozen=True, slots=True)
class VrrpView:
    """One VRRP instance on this node."""

    name: str
    interface: str
    vrid: int
    version: int
    state: str  # VrrpState
    priority: int  # what it advertises now
    configured_priority: int
    why: str
    since_at: float
    active: str | None
    released: bool  # the operator gave it up; it stays behind until claimed
    transitions_total: int
    sent_total: int
    received_total: int
    conflicts_total: int  # advertisements of its VRID with other addresses
    invalid: dict[str, int]  # reason -> advertisements on its interface that were ignored


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One proxy worker process."""

    slot: int
    pid: int
    active: int
    accepting: bool
    descriptors_used: int
    descriptors_limit: int
    accept_pauses_total: int


@dataclass(frozen=True, slots=True)
class StatusView:
    """The daemon at a glance."""

    version: str
    pid: int
    started_at: float
    config_file: str | None
    config_digest: str
    last_reload_at: float
    last_reload_ok: bool
    last_reload_error: str | None
    converged: bool  # what the data plane holds equals what it should hold
    pending_error: str | None  # why not, when it does not
    drift_repairs_total: int
    workers: tuple[WorkerView, ...]
    packets: dict[str, int] = field(default_factory=dict)  # what became of packets the XDP program saw, by reason


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """Answer to a write: what changed, in one line each; empty: nothing had to change."""

    changes: tuple[str, ...]
