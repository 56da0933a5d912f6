# SPDX-License-Identifier: Apache-2.0
"""The contract of what owns VIPs: level-triggered wishes in, reports and events out; and its form on a socket.

Invariant: a wish is complete. Whoever sets one need not know what was set before, and setting it twice changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol

from fairlead.model.vip import Vip, VrrpChecksum, VrrpInstance

MESSAGE_LIMIT = 1 << 20
PROTOCOL = 1  # of the messages between agent and process; another number is another process


@dataclass(frozen=True, slots=True)
class Stance:
    """How this node stands to one instance.

    Attributes:
        ready: It knows enough to take part. When it does not, what was said before still counts.
        degraded: Why others should rather own the addresses, or None.
    """

    ready: bool = True
    degraded: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is wished: addresses, instances, and this node's stance to each."""

    vips: tuple[Vip, ...] = ()
    instances: tuple[VrrpInstance, ...] = ()
    stances: Mapping[str, Stance] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VipReport:
    """One address on this node. ``answered_by``: MACs of others that claim it; ``since_s``: how long ago it changed."""

    vip: str
    held: bool
    since_s: float
    conflict: bool
    conflicts_total: int
    restored_total: int
    answered_by: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """One instance. ``active`` is the address of the Active router as far as it is known."""

    name: str
    state: str
    priority: int
    why: str
    since_s: float
    active: str | None
    released: bool
    transitions_total: int
    sent_total: int
    received_total: int
    conflicts_total: int


@dataclass(frozen=True, slots=True)
class Report:
    """How things are. ``invalid`` counts advertisements that were ignored, by interface and reason."""

    vips: tuple[VipReport, ...] = ()
    instances: tuple[InstanceReport, ...] = ()
    invalid: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``ago_s`` seconds before it was sent."""

    kind: str
    subject: str
    message: str
    level: str = "info"
    ago_s: float = 0.0


class Announcer(Protocol):
    """Owns VIPs as wished."""

    async def start(self) -> None:
        """Adopt what runs already.

        Raises:
            FairleadError: It cannot work.
        """

    def set(self, wanted: Wanted) -> None:
        """What is wished from now on."""

    def report(self) -> Report:
        """How things were a moment ago."""

    def release(self, instance: str) -> None:
        """Hand over to another node, and stay behind until ``claim``."""

    def claim(self, instance: str) -> None:
        """Take over now."""

    async def stop(self) -> None:
        """Give up everything in order, and end."""

    async def detach(self) -> None:
        """Leave everything as it is and let go."""


def encode(kind: str, body: Any = None) -> bytes:
    """One message; ``body`` is a dataclass or plain data."""
    content = asdict(body) if hasattr(body, "__dataclass_fields__") else body
    return json.dumps({"type": kind, "body": content}, default=str, separators=(",", ":")).encode()


def decode(data: bytes) -> tuple[str, Any]:
    """Kind and body of a message.

    Raises:
        ValueError: It is none.
    """
    message = json.loads(data)
    match message:
        case {"type": str(kind), "body": body}:
            return kind, body
        case _:
            raise ValueError("not a message")


def read_wanted(body: Any) -> Wanted:
    """A wish from its plain form.

    Raises:
        ValueError, TypeError, KeyError: It has another form.
    """
    return Wanted(
        vips=tuple(Vip(**{**raw, "address": ip_address(raw["address"])}) for raw in body["vips"]),
        instances=tuple(_read_instance(raw) for raw in body["instances"]),
        stances={name: Stance(**raw) for name, raw in body["stances"].items()},
    )


def _read_instance(raw: Mapping[str, Any]) -> VrrpInstance:
    changed = {
        "peers": tuple(map(ip_address, raw["peers"])),
        "follow": tuple(raw["follow"]),
        "checksum": VrrpChecksum(raw["checksum"]),
    }
    return VrrpInstance(**{**raw, **changed})


def read_report(body: Any) -> Report:
    """A report from its plain form.

    Raises:
        ValueError, TypeError, KeyError: It has another form.
    """
    return Report(
        vips=tuple(VipReport(**{**raw, "answered_by": tuple(raw["answered_by"])}) for raw in body["vips"]),
        instances=tuple(InstanceReport(**raw) for raw in body["instances"]),
        invalid=body["invalid"],
    )
