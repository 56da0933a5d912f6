# SPDX-License-Identifier: Apache-2.0
"""Packets go on while the agent dies, restarts and is replaced by another version (F19), and it meets others (F20)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crossing import Crossing, Daemon, crossing
from support.daemon import inside_of
from support.wait import until

pytestmark = [pytest.mark.root, pytest.mark.system]
TEXT = """
services:
  echo: {listen: 10.9.0.100:7, protocol: udp, pool: echo, forwarding: nat}
pools:
  echo: {servers: ["10.0.1.10:7", "10.0.1.11:7"], health: none}
vips:
  10.9.0.100/24: {interface: eth0, owner: static}
xdp: {flow_table: 4096}
"""
ROUNDS = 10
# Sends a datagram each 2 ms from each of 4 ports and tells what was not answered within a second.
STEADY = """
import select, socket, sys, time
socks = []
for port in range(30000, 30004):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", port)); sock.connect(("10.9.0.100", 7)); sock.setblocking(False)
    socks.append(sock)
waiting, sent, number, servers = {}, 0, 0, {}
print("ready", flush=True)
stop, ended = False, 0.0
next_at = time.monotonic()
while True:
    now = time.monotonic()
    if not stop and now >= next_at:
        for sock in socks:
            number += 1
            sock.send(b"%d" % number); waiting[number] = now; sent += 1
        next_at = max(next_at + 0.002, now - 0.1)
    ready, _, _ = select.select([*socks, *([] if stop else [sys.stdin])], [], [], max(0, min(next_at - now, 0.01)))
    for one in ready:
        if one is sys.stdin:
            stop, ended = True, time.monotonic()
            continue
        try:
            name, back = one.recv(100).split()
        except (BlockingIOError, ConnectionRefusedError):
            continue
        waiting.pop(int(back), None)
        servers.setdefault(one.getsockname()[1], set()).add(name.decode())
    if stop and (not waiting or time.monotonic() > ended + 1):
        break
print(sent, len(waiting), max(len(names) for names in servers.values()))
"""


@pytest.fixture
def bed(runtime: Path) -> Iterator[Crossing]:
    with crossing(runtime) as made:
        for number in (10, 11):
            made.add_server(f"s{number}", number).echo(runtime, "0.0.0.0", 7)
        made.ready()
        yield made


def programs(bed: Crossing) -> list[str]:
    """What ``ip`` says of XDP on the outer and on the inner interface."""
    return [line.strip() for name in ("eth0", "eth1") for line in bed.balancer.ip("link", "show", name).splitlines()
            if "prog/xdp" in line]  # fmt: skip


@pytest.mark.timeout(120)
def test_no_packet_is_lost_while_agents_die_and_follow_each_other(bed: Crossing, runtime: Path) -> None:
    daemon = Daemon(bed.balancer, runtime, TEXT)
    daemon.start()
    try:
        until(lambda: bed.counters().get("PASS_RESOLVING", 0) >= 0 and len(programs(bed)) == 2, 5, "two programs")
        subprocess.run(inside_of(bed.client, "nc", "-h"), check=False, capture_output=True)
        sender = subprocess.Popen(
            inside_of(bed.client, sys.executable, "-c", STEADY),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert sender.stdin is not None
        assert sender.stdout is not None
        try:
            assert sender.stdout.readline() == "ready\n"
            for round_ in range(ROUNDS):
                if round_ % 3 == 2:
                    daemon.leave()
                else:
                    daemon.kill()
                if round_ % 3 == 1:  # as if another version had left this: its program is replaced
                    _spoil_the_digest(bed)
                daemon.start()
                assert len(programs(bed)) == 2
            assert len(daemon.events("xdp_replaced")) <= 1
            print("stop", file=sender.stdin, flush=True)
            sent, lost, most = map(int, sender.stdout.readline().split())
        finally:
            sender.kill()
            sender.wait()
            sender.stdin.close()
            sender.stdout.close()
        assert sent > 1000
        assert lost == 0, f"{lost} of {sent}: {bed.counters()}"
        assert most == 1  # every flow stayed with its server
    finally:
        daemon.end()
    assert programs(bed) == []


def _spoil_the_digest(bed: Crossing) -> None:
    from fairlead.dataplane.xdp import kernel
    from fairlead.dataplane.xdp.libbpf import BpfMap

    with bed.balancer.inside():
        (place,) = kernel.namespace_root().glob("[0-9]*/names_meta")
    meta = BpfMap.at(place)
    note = kernel.read_note(meta.get(bytes(4)) or b"")
    meta.put(bytes(4), kernel.write_note({**note, "object": "another"}, meta.value_size))
    meta.close()
