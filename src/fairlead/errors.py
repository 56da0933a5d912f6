# SPDX-License-Identifier: Apache-2.0
"""The errors fairlead raises. Every message says what is wrong and what to do.

FairleadError
├── ConfigError            the configuration cannot be used (one or many Problems)
├── UnsupportedFeature     valid, but this version, host or engine cannot do it
│   ├── VerifierRejected   the kernel does not accept an XDP program
│   └── OffLink            dsr to a server behind a gateway
├── DataPlaneError         the data plane refused or did not answer
├── NotFound               a named pool, server or service does not exist
├── Conflict               the request does not fit the present state
├── MalformedPacket        a peer sent bytes that break a protocol (their fault)
└── ContractViolation      one room broke its promise to another (our fault)

An expected network failure (a refused probe, a peer that is away) is a result, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass


class FairleadError(Exception):
    """Root of every error that fairlead raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding in a configuration file.

    Attributes:
        file: The file it stands in, as the user named it; ``"<command line>"`` for options.
        line: 1-based line, or 0 when the finding has no place.
        column: 1-based column, or 0.
        path: Dotted path of the key, for example ``services.web.listen``; may be empty.
        message: What is wrong and what is allowed.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class ConfigError(FairleadError):
    """The configuration cannot be used; ``problems`` lists everything found, in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


class UnsupportedFeature(FairleadError):
    """``name`` is valid, but it needs ``needs``, which is not here."""

    def __init__(self, name: str, needs: str) -> None:
        super().__init__(f"{name}: {needs}")
        self.name = name
        self.needs = needs


class VerifierRejected(UnsupportedFeature):
    """The kernel's verifier refused ``program``; ``log`` is what it said, the message only its verdict."""

    def __init__(self, program: str, log: str) -> None:
        lines = [line for line in log.splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith(("processed ", "verification "))]
        verdict = words[-1] if words else "no reason given"
        super().__init__(program, f"the kernel's verifier refuses it ({verdict.strip()}); it needs Linux 5.18 or later")
        self.log = log


class OffLink(UnsupportedFeature):
    """Packets of ``name`` do not get to a server behind a gateway; how the network is, and not this node's failure."""


class DataPlaneError(FairleadError):
    """The data plane refused an operation or did not answer; ``op`` is the model.state.Op that failed, if one did."""

    def __init__(self, message: str, op: object | None = None) -> None:
        super().__init__(message)
        self.op = op


class NotFound(FairleadError):
    """A named object does not exist; the message lists near names."""


class Conflict(FairleadError):
    """The request is well formed but does not fit the present state."""


class MalformedPacket(FairleadError):
    """A peer sent bytes that break a protocol."""


class ContractViolation(FairleadError):
    """One room broke its promise to another; always a bug in fairlead."""
