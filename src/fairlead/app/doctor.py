# SPDX-License-Identifier: Apache-2.0
"""Joins what is seen of the host with what is known about it. No logic."""

from __future__ import annotations

from dataclasses import replace

from fairlead.announce.witness import who_answers
from fairlead.app.daemon import NATIVE, PROGRAMS
from fairlead.dataplane.xdp.survey import survey
from fairlead.model.configuration import Configuration
from fairlead.model.host import Finding
from fairlead.policy import doctor, real_server


def examine(configuration: Configuration, *, as_real_server: bool) -> tuple[Finding, ...]:
    """What is to say about this host, as a balancer or as a real server of one."""
    host = survey(configuration, doctor.destinations(configuration), PROGRAMS, NATIVE / "pass.bpf.o")
    if as_real_server:
        return real_server.examine(configuration, host)
    owners = who_answers(doctor.disputable(configuration, host))
    return doctor.examine(configuration, replace(host, owners=owners))
