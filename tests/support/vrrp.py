# SPDX-License-Identifier: Apache-2.0
"""VRRP routers for tests, each a context manager: fairlead's process without its agent, keepalived and FRR."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, Self

from fairlead.announce.base import Event, Report, Stance, Wanted, decode, encode, read_report
from fairlead.model.vip import STATIC, Vip, VrrpInstance
from support.netns import Node
from support.wait import until


def vip(text: str, owner: str = "pair", interface: str = "eth0") -> Vip:
    """A VIP from ADDRESS/PREFIX."""
    parsed = ip_interface(text)
    return Vip(parsed.ip, parsed.network.prefixlen, interface, owner)


def instance(name: str = "pair", **changes: Any) -> VrrpInstance:
    """An instance on eth0 with an advertisement every 100 ms."""
    settings: dict[str, Any] = {"interface": "eth0", "vrid": 51, "interval_cs": 10} | changes
    settings["peers"] = tuple(ip_address(peer) for peer in settings.get("peers", ()))
    return VrrpInstance(name, **settings)


class Process:
    """A program on a node that is ended with its block."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command on the node."""
        with self.log.open("ab") as log:
            return subprocess.Popen(self.node.command(*command), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and wait."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def start(self) -> None:
        """Start it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
        self.kill()


class Fairlead(Process):
    """``python -m fairlead.announce.vrrp`` with this test as its agent."""

    def __init__(
        self, node: Node, directory: Path, vips: Sequence[Vip], instances: Sequence[VrrpInstance] = ()
    ) -> None:
        super().__init__(node, directory)
        self.vips, self.instances = tuple(vips), tuple(instances)
        self.stances: dict[str, Stance] = {}
        self.events: list[Event] = []
        self.report = Report()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        path = self.directory / "vrrp.sock"
        path.unlink(missing_ok=True)
        self.process = self.launch(sys.executable, "-P", "-m", "fairlead.announce.vrrp", str(path))
        until(lambda: self._connect(path), 10, f"the process answers: {self.log}")
        self.tell()

    def _connect(self, path: Path) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        self.hang_up()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(5)
        try:
            self._socket.connect(str(path))
        except OSError:
            return False
        return True

    def hang_up(self) -> None:
        """As if the agent had gone."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, kind: str, body: object = None) -> None:
        """Give an order."""
        assert self._socket is not None
        self._socket.send(encode(kind, body))

    def tell(self) -> None:
        """Say what is wished."""
        self.send("set", Wanted(self.vips, self.instances, self.stances))

    def hear(self) -> Report:
        """Take in all that was said; the last report."""
        assert self._socket is not None
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while message := self._socket.recv(1 << 20):
                kind, body = decode(message)
                if kind == "report":
                    self.report = read_report(body)
                elif kind == "event":
                    self.events.append(Event(**body))
        self._socket.settimeout(5)
        return self.report

    def state(self, name: str = "pair") -> str:
        """Of an instance."""
        return next((it.state for it in self.hear().instances if it.name == name), "")

    def kinds(self) -> list[str]:
        """Words of what happened so far."""
        self.hear()
        return [event.kind for event in self.events]

    def holds(self, address: str) -> bool:
        """Whether its node has the VIP."""
        return self.node.holds(address)

    def __exit__(self, *_: object) -> None:
        super().__exit__(*_)
        self.hang_up()


class Keepalived(Process):
    """keepalived with one instance."""

    def __init__(self, node: Node, directory: Path, vips: Sequence[Vip], router: VrrpInstance, more: str = "") -> None:
        super().__init__(node, directory)
        interval = f"{router.interval_cs / 100:g}"
        peers = "".join(f"    {peer}\n" for peer in router.peers)
        source = node.address if router.peers and router.peers[0].version == 4 else node.address6
        # Over IPv6 it sends unicast with hop limit 64 by default, which a router must not believe.
        unicast = (
            f"  unicast_ttl 255\n  unicast_src_ip {source}\n  unicast_peer {{\n{peers}  }}\n" if router.peers else ""
        )
        addresses = "".join(f"    {each} dev {each.interface}\n" for each in vips)
        (self.directory / "keepalived.conf").write_text(
            f"global_defs {{\n  router_id {node.name}\n  vrrp_version {router.version}\n"
            "  vrrp_garp_master_delay 1\n}\n"
            f"vrrp_instance pair {{\n  state BACKUP\n  interface {router.interface}\n"
            f"  virtual_router_id {router.vrid}\n  priority {router.priority}\n  advert_int {interval}\n"
            f"{'' if router.preempt else '  nopreempt'}\n{unicast}{more}  virtual_ipaddress {{\n{addresses}  }}\n}}\n"
        )

    def start(self) -> None:
        at = self.directory
        self.process = self.launch(
            "keepalived", "-n", "-l", "-D", "-P", "-f", f"{at}/keepalived.conf", "-p", f"{at}/pid", "-r", f"{at}/vrrp"
        )

    def kill(self) -> None:
        """SIGKILL of parent and child."""
        children = []
        with contextlib.suppress(OSError, ValueError):
            children = [int((self.directory / "vrrp").read_text())]
        super().kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def holds(self, address: str) -> bool:
        """Whether its node has the VIP."""
        return self.node.holds(address)


class Frr(Process):
    """FRR's vrrpd, which owns a VIP by a macvlan interface that it switches on and off."""

    def __init__(self, node: Node, directory: Path, vips: Sequence[Vip], router: VrrpInstance) -> None:
        super().__init__(node, directory)
        self._zebra: subprocess.Popen[bytes] | None = None
        self._router, self._vips = router, vips
        family = "ip" if vips[0].address.version == 4 else "ipv6"
        listed = "".join(f" vrrp {router.vrid} {family} {each.address}\n" for each in vips)
        (directory / "zebra.conf").write_text("hostname zebra\n")
        (directory / "vrrpd.conf").write_text(
            f"interface eth0\n vrrp {router.vrid} version {router.version}\n"
            f" vrrp {router.vrid} priority {router.priority}\n"
            f" vrrp {router.vrid} advertisement-interval {router.interval_cs * 10}\n"
            f" {'' if router.preempt else 'no '}vrrp {router.vrid} preempt\n{listed}"
        )

    def start(self) -> None:
        node, vrid = self.node, self._router.vrid
        kind = "01" if self._vips[0].address.version == 4 else "02"
        node.ip("link", "add", "vrrp0", "link", "eth0", "type", "macvlan", "mode", "bridge")
        node.ip("link", "set", "vrrp0", "address", f"00:00:5e:00:{kind}:{vrid:02x}")
        for each in self._vips:
            node.ip("address", "add", str(each), "dev", "vrrp0", *(["nodad"] if each.address.version == 6 else []))
        node.ip("link", "set", "vrrp0", "up", "protodown", "on")
        # A host must not answer for what its macvlan interface has while that is off (FRR's own advice).
        node.run("sysctl", "-q", "net.ipv4.conf.eth0.arp_ignore=1", "net.ipv6.conf.vrrp0.keep_addr_on_down=1")
        at = self.directory
        shutil.chown(at, "frr", "frr")  # its daemons give up root before they make their sockets
        at.parent.chmod(0o711)
        common = ("-z", f"{at}/zapi", "--vty_socket", f"{at}", "--log", "stdout")
        self._zebra = self.launch("/usr/lib/frr/zebra", *common, "-f", f"{at}/zebra.conf", "-i", f"{at}/zebra.pid")
        until((at / "zapi").exists, 10, "zebra serves")
        self.process = self.launch("/usr/lib/frr/vrrpd", *common, "-f", f"{at}/vrrpd.conf", "-i", f"{at}/vrrpd.pid")

    def kill(self) -> None:
        """SIGKILL of both daemons; the interface goes down as vrrpd would have done in order."""
        super().kill()
        if self._zebra is not None:
            self._zebra.kill()
            self._zebra.wait()
            self._zebra = None

    def holds(self, address: str) -> bool:
        """Whether the macvlan interface that has the VIP is switched on."""
        shown = self.node.ip("-j", "link", "show", "dev", "vrrp0")
        return '"operstate":"UP"' in shown and self.node.holds(address, "vrrp0")


__all__ = ["STATIC", "Fairlead", "Frr", "Keepalived", "Process", "instance", "vip"]
