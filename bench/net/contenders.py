# SPDX-License-Identifier: Apache-2.0
"""What stands between clients and servers, each in a lane of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import contenders as make
from bench.contenders import Contender, Place
from bench.net.course import DISCARD, PORT, Course, Lane, enter, run_in
from fairlead.dataplane.xdp import pins
from support.netns import inside, ip
from support.packets import udp_frame
from support.processes import UnixConnection

VIP_PORT = 80
PAYLOAD = 18  # bytes, for a frame of 64 with its checksum
SNAT = 4  # addresses that fullnat sends from: one alone has too few ports for 100 000 flows to three servers
# Forwarding of those that are ours in the kernel.
XDP = {
    "xdp-nat": "nat",
    "xdp-nat-again": "nat",
    "xdp-fullnat": "fullnat",
    "xdp-dsr": "dsr",
    "xdp-tunnel": "tunnel",
}


@dataclass
class Entrant:
    """A contender and its lane."""

    contender: Contender
    lane: Lane

    @property
    def brings_xdp(self) -> bool:
        """Whether its interfaces have NAPI by themselves."""
        return self.contender.name in XDP

    def frame(self) -> bytes:
        """The frame that is forwarded: from the first client, to where the contender listens."""
        lane = self.lane
        raw = udp_frame(f"{lane.net('1.1')}:1024", f"{self.contender.place.host}:{DISCARD}", bytes(PAYLOAD), 0)
        to, source = (bytes.fromhex(lane.mac(end).replace(":", "")) for end in "oc")
        return to + source + raw[12:]


def enter_all(course: Course, names: tuple[str, ...], directory: Path) -> list[Entrant]:
    """A lane for each, with its balancer ready to be started."""
    return [_entrant(course, name, directory) for name in names]


def _entrant(course: Course, name: str, directory: Path) -> Entrant:
    lane = course.lane(balancer=name != "back-to-back")
    if lane.balancer is not None:
        course.equip(lane)
    place = Place(
        lane.vip,
        VIP_PORT,
        tuple(f"{address}:{PORT}" for address in lane.server_addresses),
        directory,
        course.cpus,
        tuple(enter(lane.balancer)) if lane.balancer else (),
        tuple(enter(course.clients)),
    )
    contender = _MAKERS.get(name, _xdp)(name, course, lane, place)
    contender.ready = contender.ready or partial(_accepts, course.clients, place)
    return Entrant(contender, lane)


def _accepts(clients: str, place: Place) -> bool:
    with inside(clients):
        return make.accepts(place.host, place.port)


def _xdp(name: str, course: Course, lane: Lane, place: Place) -> Contender:
    forwarding = XDP[name]
    rewrites = forwarding in ("nat", "fullnat")
    check = "{type: tcp, interval: 2s, timeout: 1s}"
    web = f"  web: {{listen: {place.listen}, pool: web, forwarding: {forwarding}}}\n" if rewrites else ""
    pool = f"  web: {{servers: [{', '.join(place.servers)}], health: {check}}}\n" if rewrites else ""
    frames = ", ".join(f"{address}:{DISCARD}" for address in lane.server_addresses)
    listen = f"listen: {lane.vip}:{DISCARD}, protocol: udp"
    snat = [lane.net(f"2.{2 + number}") for number in range(SNAT if forwarding == "fullnat" else 0)]
    for address in snat:
        ip("-n", str(lane.balancer), "address", "add", f"{address}/24", "dev", f"i{lane.number}")
    addresses = f"[{', '.join(snat)}]"
    contender = make.run_fairlead(
        name,
        place,
        f"services:\n{web}  frames: {{{listen}, pool: frames, forwarding: {forwarding}}}\n"
        f"pools:\n{pool}  frames: {{servers: [{frames}], health: none}}\n"
        f"vips:\n  {lane.vip}/24: {{interface: o{lane.number}, owner: static}}\n"
        f"xdp: {{mode: native{f', snat: {addresses}' if snat else ''}}}\n",
    )
    if not rewrites:
        contender.ready = partial(_serves, place.directory / f"{name}.sock")
    course.at_end(_forget, str(lane.balancer))
    return contender


def _serves(path: Path) -> bool:
    with suppress(OSError), closing(UnixConnection(str(path))) as connection:
        connection.request("GET", "/readyz")
        with closing(connection.getresponse()) as answer:
            return answer.status == 200
    return False


def _forget(namespace: str) -> None:
    with inside(namespace):
        pins.cleanup()


def _nft(name: str, _: Course, lane: Lane, place: Place) -> Contender:
    """Destination NAT with conntrack; TCP by turns, as the proxies do, and UDP by hash, as it has to be."""
    _own_vip(lane)
    servers = lane.server_addresses
    count = len(servers)
    turns = ", ".join(f"{n}: {address} . {PORT}" for n, address in enumerate(servers))
    hashed = ", ".join(f"{n}: {address}" for n, address in enumerate(servers))
    rules = f"""
table ip bench {{
  chain in {{
    type nat hook prerouting priority dstnat
    ip daddr {lane.vip} tcp dport {VIP_PORT} dnat to numgen inc mod {count} map {{ {turns} }}
    ip daddr {lane.vip} udp dport {DISCARD} dnat to jhash ip saddr . udp sport mod {count} map {{ {hashed} }}
  }}
}}
"""
    run_in(str(lane.balancer), "nft", "-f", "-", text=rules)
    return Contender(name, place, None)


def _floor(name: str, course: Course, lane: Lane, place: Place) -> Contender:
    course.attach(lane, str(lane.balancer), "o", "swap_macs")
    return Contender(name, place, None)


def _proxy(maker: Callable[[str, Place], Contender], name: str, _: Course, lane: Lane, place: Place) -> Contender:
    _own_vip(lane)
    return maker(name, place)


def _direct(name: str, _: Course, __: Lane, place: Place) -> Contender:
    return make.direct(name, place)


def _own_vip(lane: Lane) -> None:
    ip("-n", str(lane.balancer), "address", "add", f"{lane.vip}/32", "dev", f"o{lane.number}")


_MAKERS: dict[str, Callable[[str, Course, Lane, Place], Contender]] = {
    "nft": _nft,
    "floor": _floor,
    "direct": _direct,
    "back-to-back": _direct,
    "haproxy": partial(_proxy, make.haproxy),
    "nginx": partial(_proxy, make.nginx),
    "fairlead": partial(_proxy, make.fairlead),
}
