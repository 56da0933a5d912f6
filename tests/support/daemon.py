# SPDX-License-Identifier: Apache-2.0
"""``fairlead run`` on a node of a test network, and what a test asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support.netns import Node
from support.processes import UnixConnection
from support.wait import until

PROGRAM = (sys.executable, "-m", "fairlead")


def inside_of(node: Node, *command: str) -> list[str]:
    """The command that runs ``command`` in the node's network, with our mounts: pins are to outlive it."""
    return ["nsenter", f"--net=/run/netns/{node.namespace}", *command]


class NodeDaemon:
    """The daemon of ``node``; its files are in ``directory``.

    Args:
        environment: Beside the test's own.
    """

    def __init__(self, node: Node, directory: Path, text: str, environment: Mapping[str, str] | None = None) -> None:
        self.node = node
        self.file = directory / "fairlead.yaml"
        self.file.write_text(text)
        self.socket = directory / "api.sock"
        self.log = directory / "daemon.log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.source: Path | None = None  # of another version
        self.with_rights: tuple[str, ...] = ()  # a command that runs the agent with others than ours
        self._environment = environment or {}

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.launch()
        until(self._ready, 30, f"ready: {self.log}")

    def launch(self) -> None:
        """Start."""
        version = {"PYTHONPATH": str(self.source)} if self.source is not None else {}
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                inside_of(self.node, *self.with_rights, *PROGRAM, "run", str(self.file), "--socket", str(self.socket)),
                stdout=log,
                stderr=log,
                env={**os.environ, **version, **self._environment},
            )

    def _ready(self) -> bool:
        assert self.agent is not None
        assert self.agent.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.ask("/readyz")[0] == 200
        return False

    def ask(self, path: str, method: str = "GET", body: str | None = None) -> tuple[int, str]:
        """One request to the API."""
        connection = UnixConnection(str(self.socket))
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, what: str) -> Any:
        """``/v1/WHAT``, decoded."""
        status, body = self.ask(f"/v1/{what}")
        assert status == 200, body
        return json.loads(body)

    def change(self, server: str, **values: object) -> None:
        """Change a server at run time."""
        status, body = self.ask(f"/v1/servers/{server}", "PATCH", json.dumps(values))
        assert status == 200, body

    def reload(self, text: str | None = None) -> None:
        """Read the file again, which says this now."""
        if text is not None:
            self.file.write_text(text)
        status, body = self.ask("/v1/reload", "POST")
        assert status == 200, body

    def server(self, key: str) -> dict[str, Any]:
        """What it says about one server."""
        return next(it for it in self.get("servers") if it["key"] == key)

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

    def command(self, *arguments: str, check: bool = True, both: bool = False) -> str:
        """What a verb of the command line prints; ``both``: on standard error, too."""
        full = inside_of(self.node, *PROGRAM, *arguments, "--socket", str(self.socket))
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=30)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr if both else done.stdout

    def kill_agent(self) -> None:
        """SIGKILL of the agent alone."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    def signal_agent(self, number: signal.Signals) -> None:
        """A signal to the agent alone."""
        assert self.agent is not None
        self.agent.send_signal(number)
