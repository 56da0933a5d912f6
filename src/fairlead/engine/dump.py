# SPDX-License-Identifier: Apache-2.0
"""The whole state as one JSON text, for an operator whose API does not answer (signal USR1)."""

from __future__ import annotations

import json
from dataclasses import asdict

from fairlead.engine.agent import Agent
from fairlead.engine.events import KEPT_EVENTS
from fairlead.errors import DataPlaneError


async def dump(agent: Agent) -> str:
    """One line of JSON with the views that the API shows, and why a part is missing if one is."""
    content: dict[str, object] = {
        "status": asdict(agent.status()),
        "health": [asdict(view) for view in agent.health()],
        "events": [asdict(view) for view in agent.events(0, KEPT_EVENTS)],
    }
    try:
        content["services"] = [asdict(view) for view in await agent.services()]
    except DataPlaneError as error:
        content["services_missing"] = str(error)
    return json.dumps(content, separators=(",", ":"))
