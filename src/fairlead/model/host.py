# SPDX-License-Identifier: Apache-2.0
"""A host as ``fairlead doctor`` finds it, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.model.net import IPAddress
from fairlead.model.reasons import HostCheck, Severity

LOOPBACK = "lo"


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer to one question.

    Attributes:
        name: The question.
        severity: The answer.
        subject: The interface, sysctl, VIP or server it is about; ``host`` for the host itself.
        message: What is wrong, or right.
        fix: The command that puts it right, as it is typed; empty when there is nothing to do or no command does it.
    """

    name: HostCheck
    severity: Severity
    subject: str
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """A program that an interface carries; ``ours``: fairlead put it there."""

    id: int
    name: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class VethPeer:
    """The other end of a veth interface.

    Attributes:
        name: Empty when this host may not see it.
        here: It is in this network namespace.
        program: It carries an XDP program; None: unseen.
    """

    name: str = ""
    here: bool = False
    program: bool | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """One network interface.

    Attributes:
        kind: Of a virtual one, ``veth`` for instance.
        arp: Neighbours are asked for there.
        addresses: With the lengths of their prefixes.
        generic: It has no XDP in its driver, or carries a program in generic mode; None: unseen.
        receives: The kernel can hand it frames that XDP redirects (NETDEV_XDP_ACT_NDO_XMIT); None: unseen.
        lro: Large receive offload is on; None: unseen.
        gro: Generic receive offload is on; None: unseen.
        peer: Of a veth.
    """

    name: str
    kind: str = ""
    mtu: int = 1500
    loopback: bool = False
    arp: bool = True
    addresses: tuple[tuple[IPAddress, int], ...] = ()
    program: XdpProgram | None = None
    generic: bool | None = None
    receives: bool | None = None
    lro: bool | None = None
    gro: bool | None = None
    peer: VethPeer | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """Where packets to an address go; ``interface`` is empty when there is no route."""

    interface: str = ""
    gateway: bool = False
    local: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was seen of a host; mappings that lack something say that it could not be seen.

    Attributes:
        nics: By name.
        sysctls: By name, as ``sysctl`` takes it.
        ways: To servers and to networks of VIPs.
        default: To somewhere far away, by IP version.
        carriers: Interfaces that are to carry the XDP program.
        missing: Those of ``xdp.interfaces`` that do not exist.
        owners: MACs of others that answer for a VIP; None: it could not be asked.
        capabilities: Of this process, ``CAP_BPF`` for instance.
        release: Of the kernel, its first two numbers.
        libbpf: Why it cannot be used; empty: it can.
        program: The compiled XDP program is there.
        bpffs: The BPF file system is mounted where it belongs.
        pass_program: Path of the object file with a program that lets every frame pass.
    """

    nics: Mapping[str, Nic] = field(default_factory=dict)
    sysctls: Mapping[str, int] = field(default_factory=dict)
    ways: Mapping[IPAddress, Way] = field(default_factory=dict)
    default: Mapping[int, Way] = field(default_factory=dict)
    carriers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    owners: Mapping[IPAddress, tuple[str, ...] | None] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    release: tuple[int, int] = (0, 0)
    libbpf: str = ""
    program: bool = True
    bpffs: bool = True
    pass_program: str = ""

    def holder(self, address: IPAddress) -> Nic | None:
        """The interface that carries an address."""
        return next((nic for nic in self.nics.values() for held, _ in nic.addresses if held == address), None)
