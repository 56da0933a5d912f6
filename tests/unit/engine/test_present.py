# SPDX-License-Identifier: Apache-2.0
"""What holds now, and since when."""

from __future__ import annotations

from fairlead.engine.present import Present
from fairlead.model.configuration import Configuration
from fairlead.model.health import HealthState, ProbeTarget
from fairlead.model.pool import AdminState
from fairlead.policy import derive
from fairlead.policy.derive import Derived, Runtime
from support.models import DOWN, TCP_MONITOR, UP, configuration, pool, server, service

KEY, OTHER = "web/10.0.0.1:80", "web/10.0.0.2:80"


class Site:
    """Two servers, both up, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.configuration: Configuration = configuration(
            service(), pool(server("10.0.0.1:80"), server("10.0.0.2:80"), monitors=(TCP_MONITOR,))
        )
        self.states: dict[ProbeTarget, HealthState] = dict.fromkeys(derive.targets(self.configuration, Runtime()), UP)
        self.present = Present(self.configuration, lambda: self.states, lambda: self.now, lambda: 1000 + self.now)

    def wish(self, state: AdminState) -> Derived:
        """The decision that would follow."""
        before = self.present.decide()
        after = derive.set_admin(self.configuration, self.present.runtime(), KEY, state, self.now)
        return derive.desired(self.configuration, after, self.now, before)


def test_a_decision_made_elsewhere_is_the_one_that_would_have_been_made() -> None:
    site = Site()
    wished = site.wish(AdminState.DRAIN)
    assert site.present.decide() != wished  # it was not taken yet
    site.present.take_decided(wished)
    assert site.present.is_decided
    assert site.present.decide() is wished
    site.present.outdate()
    again = site.present.decide()
    assert (again, again.servers[KEY].admin) == (wished, AdminState.DRAIN)


def test_what_was_taken_can_be_taken_back() -> None:
    site = Site()
    first = site.present.decide()
    site.present.take_decided(site.wish(AdminState.DRAIN))
    site.present.take_decided(site.wish(AdminState.READY))
    assert site.present.decide() == first


def test_the_moment_of_a_verdict_is_that_of_the_decision_that_met_it() -> None:
    site = Site()
    site.present.decide()
    assert site.present.since == {KEY: 1100.0, OTHER: 1100.0}
    site.now = 105.0
    site.states = {target: DOWN if str(target.endpoint) in KEY else UP for target in site.states}
    site.present.outdate()
    site.present.decide()
    assert site.present.since == {KEY: 1105.0, OTHER: 1100.0}
    site.now = 110.0
    site.present.take_decided(site.wish(AdminState.MAINT))  # which is not probed, and has no verdict
    assert site.present.since == {KEY: 1110.0, OTHER: 1100.0}
