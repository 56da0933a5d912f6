# SPDX-License-Identifier: Apache-2.0
"""``fairlead run`` on a node of a test LAN, as one half of a pair."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from support.daemon import NodeDaemon
from support.netns import Node

VIP = "10.9.0.100/24"


def configuration(vips: Mapping[str, str] | None = None, *, service: str = "", more: str = "", **keys: object) -> str:
    """A file with one instance ``pair`` on eth0; ``keys`` are those of the instance, ``vips`` maps to interfaces."""
    settings = {"interface": "eth0", "vrid": 51, "advert_interval": "100ms", **keys}
    listed = ", ".join(f"{key}: {value}" for key, value in settings.items())
    owned = "".join(
        f'  "{vip}": {{interface: {interface}, owner: pair}}\n' for vip, interface in (vips or {VIP: "eth0"}).items()
    )
    return f"vips:\n{owned}vrrp:\n  pair: {{{listed}}}\n{more}{service or 'services: {}'}\n"


class VipNode(NodeDaemon):
    """A daemon on ``node``; at the end of its block everything of it dies at once: an orderly end takes seconds."""

    def __init__(self, node: Node, directory: Path, text: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory / node.name
        self.directory.mkdir(exist_ok=True)
        super().__init__(node, self.directory, text, environment)

    def vrrp(self) -> dict[str, Any]:
        """The instance ``pair``, or nothing while it is not known."""
        return next((it for it in self.get("vrrp") if it["name"] == "pair"), {})

    @property
    def has_all_up(self) -> bool:
        """Whether it thinks well of every server."""
        return all(it["health"] == "up" for it in self.get("servers"))

    def is_active(self) -> bool:
        """Whether it says so."""
        return bool(self.vrrp().get("state") == "active")

    def vip(self, vip: str = VIP) -> dict[str, Any]:
        """What it says about one VIP."""
        return next(it for it in self.get("vips") if it["vip"] == vip)

    def move(self, action: str, vip: str = VIP) -> None:
        """``fairlead vip release|claim``, by the API."""
        status, body = self.ask(f"/v1/vips/{vip.partition('/')[0]}/{action}", "POST")
        assert status == 200, body

    def vrrp_pid(self) -> int:
        """Process id of the running VRRP process, 0 when there is none."""
        return next(self._processes("vrrp.sock"), 0)

    def agent_pid(self) -> int:
        """Of the agent."""
        assert self.agent is not None
        return self.agent.pid

    def kill_everything(self) -> None:
        """SIGKILL of the agent, the VRRP process and the workers, at once."""
        for each in (self.agent_pid(), *self._processes("vrrp.sock"), *self._processes("worker-")):
            os.kill(each, signal.SIGKILL)
        assert self.agent is not None
        self.agent.wait()

    def stop(self) -> None:
        """An orderly, quick end."""
        assert self.agent is not None
        if self.agent.poll() is None:
            self.agent.send_signal(signal.SIGINT)
        self.agent.wait(30)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.agent is not None and self.agent.poll() is None:
            self.kill_agent()
        for pid in (*self._processes("vrrp.sock"), *self._processes("worker-")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self, place: str) -> Iterator[int]:
        """Living processes that were started with a path in the runtime directory that begins so."""
        mark = os.fsencode(self.socket.with_suffix(".d") / place)
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(mark) for word in command) and (entry / "exe").exists():
                    yield int(entry.name)
