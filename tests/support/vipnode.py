# SPDX-License-Identifier: Apache-2.0
"""``fairlead run`` on a node of a test LAN, as one half of a pair."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

from support.netns import Node
from support.processes import UnixConnection
from support.wait import until

VIP = "10.9.0.100/24"
PROGRAM = (sys.executable, "-m", "fairlead")


def configuration(vips: Mapping[str, str] | None = None, *, service: str = "", more: str = "", **keys: object) -> str:
    """A file with one instance ``pair`` on eth0; ``keys`` are those of the instance, ``vips`` maps to interfaces."""
    settings = {"interface": "eth0", "vrid": 51, "advert_interval": "100ms", **keys}
    listed = ", ".join(f"{key}: {value}" for key, value in settings.items())
    owned = "".join(
        f'  "{vip}": {{interface: {interface}, owner: pair}}\n' for vip, interface in (vips or {VIP: "eth0"}).items()
    )
    return f"vips:\n{owned}vrrp:\n  pair: {{{listed}}}\n{more}{service or 'services: {}'}\n"


class VipNode:
    """A daemon on ``node``; ends with its block, and its VRRP process with it."""

    def __init__(self, node: Node, directory: Path, text: str) -> None:
        self.node = node
        self.directory = directory / node.name
        self.directory.mkdir(exist_ok=True)
        self.file = self.directory / "fairlead.yaml"
        self.file.write_text(text)
        self.socket = self.directory / "api.sock"
        self.log = self.directory / "log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.seen_processes: set[int] = set()

    def start(self) -> None:
        """Start and wait until it serves."""
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                self.node.command(*PROGRAM, "run", str(self.file), "--socket", str(self.socket)),
                stdout=log,
                stderr=log,
            )
        until(self._ready, 30, f"ready: {self.log}")

    def _ready(self) -> bool:
        assert self.agent is not None
        assert self.agent.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.ask("/readyz")[0] == 200
        return False

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        """One request to the API."""
        connection = UnixConnection(str(self.socket))
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, what: str) -> Any:
        """``/v1/WHAT``, decoded."""
        status, body = self.ask(f"/v1/{what}")
        assert status == 200, body
        return json.loads(body)

    def vrrp(self) -> dict[str, Any]:
        """The instance ``pair``, or nothing while it is not known."""
        return next((it for it in self.get("vrrp") if it["name"] == "pair"), {})

    def is_active(self) -> bool:
        """Whether it says so."""
        return bool(self.vrrp().get("state") == "active")

    def vip(self, vip: str = VIP) -> dict[str, Any]:
        """What it says about one VIP."""
        return next(it for it in self.get("vips") if it["vip"] == vip)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.get("events?limit=1000") if event["kind"] == kind]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric with these labels."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"fairlead_{name}" and labels.items() <= sample.labels.items()
        )

    def move(self, action: str, vip: str = VIP) -> None:
        """``fairlead vip release|claim``, by the API."""
        status, body = self.ask(f"/v1/vips/{vip.partition('/')[0]}/{action}", "POST")
        assert status == 200, body

    def vrrp_pid(self) -> int:
        """Process id of the running VRRP process, 0 when there is none."""
        mark = os.fsencode(self.socket.with_suffix(".d") / "vrrp.sock")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes().split(b"\0") and (entry / "exe").exists():
                    self.seen_processes.add(int(entry.name))
                    return int(entry.name)
        return 0

    def agent_pid(self) -> int:
        """Of the agent; ``ip netns exec`` becomes the program that it runs."""
        assert self.agent is not None
        return self.agent.pid

    def kill_everything(self) -> None:
        """SIGKILL of the agent and of the VRRP process, at once."""
        pid = self.vrrp_pid()
        for each in (self.agent_pid(), pid):
            os.kill(each, signal.SIGKILL)
        assert self.agent is not None
        self.agent.wait()

    def kill_agent(self) -> None:
        """SIGKILL of the agent alone."""
        assert self.agent is not None
        self.agent.kill()
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
        try:
            self.vrrp_pid()
            if self.agent is not None and self.agent.poll() is None:
                self.stop()
        finally:
            if self.agent is not None and self.agent.poll() is None:
                self.kill_agent()
            if (pid := self.vrrp_pid()) != 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._kill_workers()

    def _kill_workers(self) -> None:
        mark = os.fsencode(self.socket.with_suffix(".d")) + b"/worker-"
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
