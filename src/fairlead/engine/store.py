# SPDX-License-Identifier: Apache-2.0
"""What must survive the agent: verdicts, run-time states and the clocks of drains, in one JSON file.

Invariants: the file is replaced as a whole; a file that cannot be used is a warning and an empty start, never a
stop. Monotonic moments hold within one boot of the host, therefore the boot's id stands in the file; after a boot
no flow is left whose drain could matter, and the host's checks begin anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fairlead.engine.encoded import Encoded, to_json
from fairlead.engine.files import replace_file
from fairlead.model.configuration import Configuration
from fairlead.model.health import AgentAdvice, HealthState, ProbeTarget, Verdict
from fairlead.model.net import Endpoint
from fairlead.model.pool import AdminState, RealServer
from fairlead.model.reasons import DownReason
from fairlead.policy.derive import Departure, Ejection, Override, Runtime, targets

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """The file was there but could not be used; ``why`` is one line."""

    why: str


class Store:
    """Reads and writes the file.

    Args:
        path: Where it lies.
        boot_id: Changes with each boot of the host.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id
        self._health: Encoded[ProbeTarget, HealthState] = Encoded(lambda it, state: (_target_id(it), _health(state)))
        self._overrides: Encoded[str, Override] = Encoded(lambda key, override: (key, _override(override)))
        self._drain_since: Encoded[str, float] = Encoded(lambda key, moment: (key, moment))
        self._advice: Encoded[ProbeTarget, AgentAdvice] = Encoded(lambda it, advice: (_target_id(it), asdict(advice)))

    def texts(self, runtime: Runtime) -> list[str]:
        """``runtime`` as ``write`` takes it: JSON in many pieces, most of which are those of the last time."""
        parts = {
            "format": [str(FORMAT)],
            "boot_id": [to_json(self._boot_id)],
            "health": self._health.texts(runtime.health),
            "overrides": self._overrides.texts(runtime.overrides),
            "drain_since": self._drain_since.texts(runtime.drain_since),
            "departures": [to_json({key: _departure(departure) for key, departure in runtime.departures.items()})],
            "resting": [to_json(sorted(runtime.resting))],
            "rising": [to_json(dict(runtime.rising))],
            "advice": self._advice.texts(runtime.advice),
            "ejections": [to_json({key: asdict(ejection) for key, ejection in runtime.ejections.items()})],
        }
        return [it for name, pieces in parts.items() for it in (f',"{name}":', *pieces)]

    def write(self, texts: Iterable[str]) -> None:
        """Write what ``texts`` returned, in any thread.

        Raises:
            OSError: The file system refuses it.
        """
        replace_file(self._path, f"{{{''.join(texts)[1:]}}}".encode())

    def load(self, configuration: Configuration) -> Runtime | Loss | None:
        """What an earlier agent left, as far as ``configuration`` still knows it; None when there is nothing."""
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return Loss(f"{self._path} cannot be read ({error}); health and run-time states start anew")
        try:
            return self._runtime(content, configuration)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return Loss(f"{self._path} has an unknown form ({error!r}); health and run-time states start anew")

    def _runtime(self, content: Mapping[str, Any], configuration: Configuration) -> Runtime:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        overrides = {key: _read_override(raw) for key, raw in content["overrides"].items()}
        if content["boot_id"] != self._boot_id:
            return Runtime(overrides=overrides)
        known = targets(configuration, Runtime())
        health = {
            target: _read_health(raw)
            for target in known
            if (raw := content["health"].get(_target_id(target))) is not None
        }
        return Runtime(
            health=health,
            overrides=overrides,
            drain_since={key: float(moment) for key, moment in content["drain_since"].items()},
            departures={key: _read_departure(raw) for key, raw in content["departures"].items()},
            # Younger than the format: a file without them is an older one.
            resting=frozenset(map(str, content.get("resting", ()))),
            rising={key: float(moment) for key, moment in content.get("rising", {}).items()},
            advice={
                target: _read_advice(raw)
                for target in known
                if (raw := content.get("advice", {}).get(_target_id(target))) is not None
            },
            ejections={key: _read_ejection(raw) for key, raw in content.get("ejections", {}).items()},
        )


def _target_id(target: ProbeTarget) -> str:
    """A verdict is reused only for the same endpoint checked in the same way (F41)."""
    return f"{target.endpoint} {target.monitor!r}"


def _health(state: HealthState) -> dict[str, Any]:
    return {
        "verdict": state.verdict,
        "streak": state.streak,
        "checked": state.checked,
        "reason": state.reason,
        "detail": state.detail,
    }


def _read_health(raw: Mapping[str, Any]) -> HealthState:
    reason = raw["reason"]
    return HealthState(
        verdict=Verdict(raw["verdict"]),
        streak=int(raw["streak"]),
        checked=bool(raw["checked"]),
        reason=None if reason is None else DownReason(reason),
        detail=str(raw["detail"]),
    )


def _override(override: Override) -> dict[str, Any]:
    return {
        "state": override.state,
        "weight": override.weight,
        "base_state": override.base_state,
        "base_weight": override.base_weight,
    }


def _read_override(raw: Mapping[str, Any]) -> Override:
    return Override(
        state=None if raw["state"] is None else AdminState(raw["state"]),
        weight=None if raw["weight"] is None else int(raw["weight"]),
        base_state=AdminState(raw["base_state"]),
        base_weight=int(raw["base_weight"]),
    )


def _read_advice(raw: Mapping[str, Any]) -> AgentAdvice:
    return AgentAdvice(
        share=int(raw["share"]),
        admin=AdminState(raw["admin"]),
        up=bool(raw["up"]),
        max_connections=int(raw["max_connections"]),
        reason=str(raw["reason"]),
    )


def _read_ejection(raw: Mapping[str, Any]) -> Ejection:
    return Ejection(float(raw["since"]), float(raw["until"]), int(raw["times"]), float(raw["forget_at"]))


def _departure(departure: Departure) -> dict[str, Any]:
    server = departure.server
    return {
        "pool": departure.pool,
        "name": server.name,
        "address": str(server.endpoint.address),
        "port": server.endpoint.port,
        "weight": server.weight,
        "max_connections": server.max_connections,
        "deadline": departure.deadline,
        "since": departure.since,
    }


def _read_departure(raw: Mapping[str, Any]) -> Departure:
    server = RealServer(
        name=str(raw["name"]),
        endpoint=Endpoint(ip_address(raw["address"]), int(raw["port"])),
        weight=int(raw["weight"]),
        max_connections=int(raw["max_connections"]),
    )
    return Departure(pool=str(raw["pool"]), server=server, deadline=float(raw["deadline"]), since=float(raw["since"]))
