# SPDX-License-Identifier: Apache-2.0
"""XDP data planes for tests: opened in the present network namespace, and leaving nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fairlead.dataplane.xdp import pins
from fairlead.dataplane.xdp.driver import XdpDataPlane
from fairlead.dataplane.xdp.programs import Programs
from fairlead.model.xdp import XdpSettings
from fairlead.policy import tables
from support.xdp import ROOT, compiled, ip, own_namespace


@contextlib.contextmanager
def forwarding_host(*addresses: str) -> Iterator[None]:
    """This thread in a network namespace with ``eth0``, which has these addresses; nothing of the data plane stays."""
    with own_namespace():
        ip("link", "set", "lo", "up")
        ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        for name in ("eth0", "far0"):
            ip("link", "set", name, "up")
        for address in addresses:
            ip("addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path(f"/proc/sys/net/{name}").write_text("1")
        yield
        pins.cleanup()


def programs() -> Programs:
    """Freshly compiled."""
    return Programs.found(lambda name: compiled(ROOT / f"bpf/{name}.bpf.c"))


def plane(events: list[tuple[str, str, str]] | None = None, **settings: Any) -> XdpDataPlane:
    """One that is not started."""
    told = events if events is not None else []
    settings.setdefault("flow_table", 4096)
    return XdpDataPlane(
        settings=XdpSettings(**settings),
        programs=programs(),
        build_table=tables.build,
        on_event=lambda *event: told.append(event),
    )


@contextlib.asynccontextmanager
async def opened_plane(
    events: list[tuple[str, str, str]] | None = None, **settings: Any
) -> AsyncIterator[XdpDataPlane]:
    """One that is started, and takes everything out of the kernel again."""
    made = plane(events, **settings)
    try:
        await made.start()
        yield made
    finally:
        await made.detach()
        pins.cleanup()
