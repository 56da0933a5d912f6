# SPDX-License-Identifier: Apache-2.0
"""Takes away what a daemon left that was killed and is not to come back: processes, XDP programs, addresses, rules."""

from __future__ import annotations

from pathlib import Path

from fairlead.announce.client import VrrpProcess
from fairlead.announce.netlink import Netlink
from fairlead.app.daemon import WORKER
from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.dataplane.xdp import filters, pins
from fairlead.engine.files import Lock
from fairlead.model.paths import runtime_directory
from fairlead.policy import tables


async def clean_up(socket: Path) -> list[str]:
    """Remove everything; what that was, in words.

    Raises:
        Conflict: A daemon runs with this socket.
    """
    directory = runtime_directory(socket)
    removed: list[str] = []
    if directory.is_dir():
        lock = Lock(directory / "lock")
        lock.acquire()
        try:
            await _end_processes(directory, removed)
        finally:
            lock.release()
    removed += filters.cleanup() + pins.cleanup()
    netlink = Netlink()
    try:
        for address in [it for it in netlink.addresses.values() if netlink.is_ours(it)]:
            netlink.remove(address)
            removed.append(f"address {address.address}/{address.prefix}")
    finally:
        netlink.close()
    return removed


async def _end_processes(directory: Path, removed: list[str]) -> None:
    """Workers and the VRRP process outlive their agent; each ends in order when it is adopted first."""
    if (directory / "vrrp.sock").exists():
        announcer = VrrpProcess(directory, lambda _: None)
        await announcer.start()
        await announcer.stop()
        removed.append("process that holds VIPs, and its addresses")
    workers = _workers(directory)
    if workers:
        plane = ProxyDataPlane(
            runtime_dir=directory,
            workers=len(workers),
            worker_path=WORKER,
            build_table=tables.build,
            on_change=lambda: None,
        )
        await plane.start()
        await plane.stop(drain_s=0.0)
        removed.append(f"proxy workers: {len(workers)}")


def _workers(directory: Path) -> list[Path]:
    """Control sockets of workers."""
    return list(directory.glob("worker-*.sock"))
