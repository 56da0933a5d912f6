# SPDX-License-Identifier: Apache-2.0
"""Whether interfaces can carry the XDP program: what is on them already, what their driver and their peer do."""

from __future__ import annotations

from collections.abc import Iterator

from fairlead.model.host import Finding, HostFacts, Nic
from fairlead.model.reasons import HostCheck, Severity
from fairlead.model.xdp import XdpMode

_VETH = "veth"


def examine(host: HostFacts, mode: XdpMode, one_armed: frozenset[str]) -> Iterator[Finding]:
    """Every interface that is to carry the program.

    Args:
        host: What was seen.
        mode: The setting.
        one_armed: Interfaces by which packets go to servers that came in there.
    """
    for name in host.missing:
        message = "it is in xdp.interfaces, but there is no such interface; it gets the program when it appears"
        yield Finding(HostCheck.INTERFACES, Severity.ERROR, name, message)
    if not host.carriers:
        message = "no interface is found that should carry the XDP program"
        fix = "name them: xdp: {interfaces: [...]} in the file"
        yield Finding(HostCheck.INTERFACES, Severity.ERROR, "host", f"{message}; {fix}")
    for name in host.carriers:
        nic = host.nics[name]
        yield Finding(HostCheck.INTERFACES, Severity.OK, name, "carries the XDP program, or is to")
        yield foreign(nic)
        if nic.generic is not None:
            yield _mode(nic, mode)
        yield from _offloads(nic, generic=mode is XdpMode.GENERIC or bool(nic.generic))
        if nic.kind == _VETH:
            yield veth_peer(nic, one_armed=name in one_armed, pass_program=host.pass_program)


def foreign(nic: Nic) -> Finding:
    """Whether somebody else's XDP program is there (F20)."""
    program = nic.program
    if program is None or program.ours:
        message = "no other XDP program"
        return Finding(HostCheck.FOREIGN_XDP, Severity.OK, nic.name, message)
    what = f"{program.name!r} (id {program.id})" if program.name else f"with id {program.id}"
    return Finding(
        HostCheck.FOREIGN_XDP,
        Severity.ERROR,
        nic.name,
        f"another XDP program {what} is there; fairlead never replaces it, so packets are not forwarded. Remove it, "
        f"or leave {nic.name} out of xdp.interfaces",
        f"ip link set dev {nic.name} xdp off",
    )


def _mode(nic: Nic, mode: XdpMode) -> Finding:
    """Whether the driver runs the program itself."""
    if not nic.generic or mode is XdpMode.GENERIC:
        return Finding(
            HostCheck.XDP_MODE, Severity.OK, nic.name, "generic, as the file says" if nic.generic else "native"
        )
    if mode is XdpMode.NATIVE:
        message = "its driver has no native XDP, and the file says native: say xdp: {mode: auto} there"
        return Finding(HostCheck.XDP_MODE, Severity.ERROR, nic.name, message)
    message = "its driver has no native XDP; generic mode works, but at a fraction of the speed"
    return Finding(HostCheck.XDP_MODE, Severity.WARNING, nic.name, message)


def _offloads(nic: Nic, *, generic: bool) -> Iterator[Finding]:
    """What glues packets together before the program sees them (F23)."""
    if nic.lro:
        message = "large receive offload glues packets together that cannot be forwarded"
        yield Finding(HostCheck.LRO, Severity.ERROR, nic.name, message, f"ethtool -K {nic.name} lro off")
    elif nic.lro is not None:
        yield Finding(HostCheck.LRO, Severity.OK, nic.name, "off")
    if not generic:
        return
    if nic.gro:
        message = "with XDP in generic mode, generic receive offload glues packets together before they are seen"
        yield Finding(HostCheck.GRO, Severity.ERROR, nic.name, message, f"ethtool -K {nic.name} gro off")
    elif nic.gro is not None:
        yield Finding(HostCheck.GRO, Severity.OK, nic.name, "off, as generic mode needs it")


def veth_peer(nic: Nic, *, one_armed: bool, pass_program: str) -> Finding:
    """Whether the other end takes frames that XDP sends: without a program there they are lost in silence (F24)."""
    peer = nic.peer
    if peer is not None and peer.program:
        return Finding(HostCheck.VETH_PEER, Severity.OK, nic.name, f"its peer {peer.name} carries an XDP program")
    name = peer.name if peer is not None and peer.name else ""
    which = f"its peer {name}" if name else "its peer"
    where = "" if peer is not None and peer.here else ", in the peer's network namespace"
    fix = f"ip link set dev {name or 'PEER'} xdp object {pass_program} section xdp"
    cure = f"Give it a program that lets everything pass{where}"
    if nic.receives is False:
        message = f"{which} has neither an XDP program nor GRO: every frame that XDP sends by {nic.name} is lost"
        return Finding(HostCheck.VETH_PEER, Severity.ERROR, nic.name, f"{message}. {cure}", fix)
    if peer is None or peer.program is None:
        unseen = f"{which} cannot be seen from here; without an XDP program there, frames that XDP sends are lost"
        return Finding(HostCheck.VETH_PEER, Severity.WARNING, nic.name, f"{unseen}. {cure}", fix)
    lost = "what goes to servers by the interface it came in" if one_armed else "refusals and ICMP answers"
    message = f"{which} has no XDP program, and GRO alone does not wake it for frames that XDP turns around: {lost}"
    severity = Severity.ERROR if one_armed else Severity.WARNING
    return Finding(HostCheck.VETH_PEER, severity, nic.name, f"{message} may be lost. {cure}", fix)
