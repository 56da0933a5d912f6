# SPDX-License-Identifier: Apache-2.0
"""All that the API may ask of the daemon; the engine implements it, and tests bring a fake one.

Invariant: every method runs on the event loop, never blocks it, and raises only the errors named here
and their root, FairleadError; whatever else comes out of it is a bug.
"""

from __future__ import annotations

from typing import Protocol

from fairlead.model.net import FlowQuestion
from fairlead.model.pool import AdminState
from fairlead.model.views import (
    ChangeResult,
    EventView,
    ExplainView,
    FlowPage,
    HealthView,
    ServerView,
    ServiceView,
    StatusView,
    VipView,
    VrrpView,
)


class Facade(Protocol):
    """The daemon as the API sees it."""

    def status(self) -> StatusView:
        """The daemon at a glance."""

    def ready(self) -> bool:
        """Whether the configuration is loaded and the data plane has been programmed with it once."""

    async def services(self) -> tuple[ServiceView, ...]:
        """All services, with the servers of their pools.

        Raises:
            DataPlaneError: The counters could not be read.
        """

    async def servers(self) -> tuple[ServerView, ...]:
        """All servers of all pools, each once, and removed ones that still have flows.

        Raises:
            DataPlaneError: The counters could not be read.
        """

    def health(self) -> tuple[HealthView, ...]:
        """All probed targets."""

    def vips(self) -> tuple[VipView, ...]:
        """All VIPs of the configuration, as this node sees them."""

    def vrrp(self) -> tuple[VrrpView, ...]:
        """All VRRP instances of this node."""

    async def move_vip(self, address: str, action: str, *, dry_run: bool) -> ChangeResult:
        """Hand over or take over the VRRP instance that owns a VIP; ``action`` is ``release`` or ``claim``.

        Raises:
            NotFound: No such VIP.
            Conflict: It is static, or this node is in no state to own it.
        """

    def events(self, after: int, limit: int) -> tuple[EventView, ...]:
        """The oldest ``limit`` events that came after the one with id ``after``."""

    async def wait_event(self, after: int, timeout_s: float) -> None:
        """Return when an event newer than ``after`` exists, or when ``timeout_s`` seconds have passed."""

    async def connections(self, service: str | None, server: str | None, cursor: str | None, limit: int) -> FlowPage:
        """One page of connections; ``cursor`` comes from the page before.

        Raises:
            NotFound: ``service`` or ``server`` (POOL/SERVER) is not configured.
            Conflict: ``cursor`` did not come from here or is too old.
            DataPlaneError: The data plane did not answer.
        """

    async def explain(self, question: FlowQuestion, without: str | None) -> ExplainView:
        """Where a flow goes and why; ``without`` (POOL/SERVER) is a server to be thought away.

        Raises:
            NotFound: No service is there, or no such server.
            Conflict: The server is none of the service's.
            DataPlaneError: The data plane did not answer.
        """

    async def set_server(
        self, key: str, *, admin: AdminState | None, weight: int | None, dry_run: bool
    ) -> ChangeResult:
        """Change a server at run time; None leaves that part as it is. ``dry_run`` says what would change.

        Raises:
            NotFound: No such POOL/SERVER; the message lists near names.
            Conflict: The server is on its way out.
            DataPlaneError: The data plane did not take it.
        """

    async def reload(self, dry_run: bool) -> ChangeResult:
        """Read the configuration file again and go over to it.

        Raises:
            ConfigError: The file is invalid; nothing has changed.
            Conflict: The daemon runs without a file, or another reload is under way.
            DataPlaneError: The data plane did not take it.
        """
