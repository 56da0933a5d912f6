# SPDX-License-Identifier: Apache-2.0
"""The proxy data plane around its workers: death, adoption, other versions, host refusals, leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.dataplane.base import FlowFilter
from fairlead.dataplane.proxy import abi, fleet, workers
from fairlead.dataplane.proxy.driver import ProxyDataPlane
from fairlead.dataplane.proxy.workers import Worker
from fairlead.errors import DataPlaneError
from fairlead.model.reasons import RejectReason
from fairlead.model.state import Plan, PutServer
from fairlead.policy.plan import plan
from support.models import listener, server_spec
from support.processes import free_port
from support.proxy import bring, kill, lab, one_service, pids, until

# Death


async def test_a_killed_worker_is_replaced_and_nobody_is_refused(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        await bring(plane, state)
        for round_ in range(4):
            before = await pids(plane)
            await kill(plane, round_ % 2)
            for _ in range(40):
                client = await made.client(at)
                assert await client.say() == server
                await client.close()
            await until(lambda: made.kinds().count("worker_started") > round_, 10, "it is replaced")  # noqa: B023
            now = await pids(plane)
            assert [a == b for a, b in zip(before, now, strict=True)].count(True) == 1
            assert not plan(state, await plane.observe())
        assert made.kinds().count("worker_died") == 4
        assert made.changes == 4
        assert "killed by SIGKILL" in made.events[0][2]


async def test_connections_in_a_dead_workers_queue_reach_its_replacement(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(1)
        state, at = one_service(server)
        await bring(plane, state)
        [pid] = await pids(plane)
        os.kill(pid, signal.SIGSTOP)
        clients = [await made.client(at) for _ in range(20)]
        os.kill(pid, signal.SIGKILL)
        assert [await client.say() for client in clients] == [server] * 20


async def test_counters_never_fall_and_limits_are_repaired_when_workers_die(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server, max_connections=4)
        await bring(plane, state)
        held = [await made.client(at) for _ in range(4)]
        assert [await client.say() for client in held] == [server] * 4
        assert await made.ask(at) == ""
        counted = (await plane.counters()).services["web"]
        assert (counted.active, counted.connections) == (4, 4)
        assert counted.rejected[RejectReason.SERVICE_FULL] == 1
        old = await pids(plane)
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: made.changes == 2, 10, "both workers are replaced and fed")
        after = (await plane.counters()).services["web"]
        assert (after.active, after.connections, after.bytes_in) == (0, 4, counted.bytes_in)
        assert after.rejected == counted.rejected
        assert [await made.ask(at) for _ in range(4)] == [server] * 4
        counters = await plane.counters()
        assert counters.services["web"].connections == 8
        assert counters.servers[f"web/{server}"].connections == 8


async def test_a_silent_worker_is_killed_and_replaced(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2, start=False)
        plane._fleet.response_timeout_s = 0.3
        await plane.start()
        state, at = one_service(server)
        await bring(plane, state)
        old = await pids(plane)
        os.kill(old[0], signal.SIGSTOP)
        assert not plan(state, await plane.observe())
        await until(lambda: "worker_started" in made.kinds(), 10, "the worker is replaced")
        assert "did not answer" in made.events[0][2]
        assert (await pids(plane))[1] == old[1]
        assert await made.ask(at) == server


async def test_a_slot_that_keeps_dying_backs_off_and_gets_no_connections(
    runtime: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "BACK_OFF_S", (0.0, 0.0, 0.0, 0.3))
    link = runtime / "program"
    link.symlink_to(program)
    async with lab(runtime, link) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        await bring(plane, state)
        link.unlink()
        link.symlink_to("/bin/false")
        await kill(plane, 0)
        await until(lambda: made.kinds().count("worker_failed") >= 4, 10, "the slot is given up for a while")
        assert "did not come up (exit code 1)" in made.events[1][2]
        for _ in range(20):  # all go to the other worker, none waits
            assert await made.ask(at) == server
        assert not plan(state, await plane.observe())
        link.unlink()
        link.symlink_to(program)
        await until(lambda: "worker_started" in made.kinds(), 10, "the slot comes back")
        assert len(await pids(plane)) == 2
        for _ in range(20):
            assert await made.ask(at) == server
        assert not plan(state, await plane.observe())


async def test_only_deaths_in_a_row_make_a_slot_wait(
    runtime: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "BACK_OFF_S", (0.0, 0.0, 3600.0))
    monkeypatch.setattr(fleet, "STEADY_S", -1.0)
    async with lab(runtime, program) as made:
        plane = await made.plane(2)
        for death in range(1, 5):  # a worker that lived long enough
            await kill(plane, 0)
            await until(lambda: made.changes == death, 10, "it is replaced at once")  # noqa: B023
        monkeypatch.setattr(fleet, "STEADY_S", 3600.0)
        for death in (5, 6):
            await kill(plane, 0)
            await until(lambda: made.changes == death or made.kinds().count("worker_died") > 5, 10, "it is replaced")  # noqa: B023
        await asyncio.sleep(0.2)
        assert made.changes == 5
        assert len(await pids(plane)) == 1


async def test_without_any_worker_the_error_says_why(
    runtime: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "BACK_OFF_S", (5.0,))
    monkeypatch.setattr("fairlead.dataplane.proxy.driver.SOME_WORKER_WAIT_S", 0.1)
    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        await kill(plane, 0)
        await until(lambda: "worker_died" in made.kinds(), 10, "its end is noticed")
        with pytest.raises(DataPlaneError, match=r"no proxy worker runs.*SIGKILL"):
            await plane.observe()
        with pytest.raises(DataPlaneError, match="no proxy worker runs"):
            await plane.apply(Plan((PutServer(server_spec("web/1")),)))


@pytest.mark.parametrize(("path", "message"), [("/nowhere/worker", "No such file"), ("/bin/true", "did not come up")])
async def test_a_worker_that_cannot_be_started_is_a_clear_error(runtime: Path, path: str, message: str) -> None:
    async with lab(runtime, Path(path)) as made:
        with pytest.raises(DataPlaneError, match=message):
            await made.plane(1)


async def test_if_one_worker_cannot_be_started_the_others_do_not_stay(
    runtime: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(2, start=False)
        start = plane._fleet.start

        async def second_fails(slot: int) -> Worker:
            if slot:
                raise DataPlaneError("no room")
            return await start(slot)

        monkeypatch.setattr(plane._fleet, "start", second_fails)
        with pytest.raises(DataPlaneError, match="no room"):
            await plane.start()
        assert plane._fleet.all() == []
        assert not (runtime / "worker-0.sock").exists()


# The agent's own end


async def test_a_new_agent_adopts_workers_and_connections(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        plane = await made.plane(2)
        state, at = one_service(server)
        await bring(plane, state)
        clients = [await made.client(at) for _ in range(6)]
        for client in clients:
            assert await client.say() == server
        old, counted = await pids(plane), await plane.counters()
        await plane.detach()
        assert await made.ask(at) == server  # nobody needs an agent for that
        heir = await made.plane(2)
        assert not plan(state, await heir.observe())
        assert await pids(heir) == old
        assert [await client.say() for client in clients] == [server] * 6
        after = await heir.counters()
        assert after.services["web"].connections == counted.services["web"].connections + 1
        assert after.services["web"].active >= 6
        page = await heir.flows(FlowFilter(service="web", server=f"web/{server}"), None, 100)
        assert len(page.flows) == after.services["web"].active
        assert {flow.service for flow in page.flows} == {"web"}
        await kill(heir, 0)  # what was adopted feeds the replacement, as far as it is known; a plan brings the rest
        await until(lambda: made.changes == 1, 10, "the agent is told to look")
        await bring(heir, state)
        for _ in range(20):
            assert await made.ask(at) == server


async def test_neighbouring_ports_survive_adoption_one_by_one(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        port = free_port()
        state, at = one_service(server, at=f"127.0.0.8:{port}")
        two = replace(state, listeners=state.listeners | {listener("web", f"127.0.0.8:{port + 1}")})
        plane = await made.plane(1)
        await bring(plane, two)
        await plane.detach()
        heir = await made.plane(1)
        [pid] = await pids(heir)
        os.kill(pid, signal.SIGSTOP)
        waiting = await made.client(at)  # in the queue, while the ports are regrouped
        os.kill(pid, signal.SIGCONT)
        await bring(heir, two)
        assert await waiting.say() == server
        await bring(heir, state)
        with pytest.raises(ConnectionRefusedError):
            await made.client(f"127.0.0.8:{port + 1}")
        assert await made.ask(at) == server


async def test_fewer_workers_drain_and_more_are_started(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(3)
        await bring(plane, state)
        serving: set[int] = set()
        while len(serving) < 3:
            assert await made.ask(at) == server
            serving = {flow.worker for flow in (await plane.flows(FlowFilter(), None, 100)).flows}
        old = await pids(plane)
        await plane.detach()
        heir = await made.plane(1)
        assert made.kinds() == ["worker_draining"] * 2
        views = (await heir.counters()).workers
        assert [(it.slot, it.pid, it.accepting) for it in views] == [
            (slot, pid, slot == 0) for slot, pid in enumerate(old)
        ]
        assert not plan(state, await heir.observe())
        held = (await heir.flows(FlowFilter(), None, 100)).flows
        assert {flow.worker for flow in held} == {0, 1, 2}
        assert {flow.service for flow in held} == {"web"}
        for _ in range(10):
            assert await made.ask(at) == server
        counted = (await heir.counters()).services["web"].connections
        await heir.detach()
        third = await made.plane(2)  # the slots of those that still drain are taken
        assert [it.slot for it in (await third.counters()).workers] == [0, 1, 2, 3]
        assert (await third.counters()).services["web"].connections == counted
        await bring(third, state)
        for _ in range(10):
            assert await made.ask(at) == server
        made.hang_up()
        await until(lambda: len(third._fleet.sharing()) == 2, 10, "the drained workers end with their last flow")


async def test_a_worker_that_died_while_no_agent_ran_is_replaced_and_its_row_repaired(
    runtime: Path, program: Path
) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(2)
        await bring(plane, state)
        for _ in range(8):
            assert await made.ask(at) == server
        old = await pids(plane)
        await plane.detach()
        os.kill(old[1], signal.SIGKILL)
        heir = await made.plane(1)  # its row is nobody's now, but counted in the totals
        counters = await heir.counters()
        flows = (await heir.flows(FlowFilter(), None, 100)).flows
        assert counters.services["web"].active == len(flows)
        assert counters.services["web"].connections == 8
        assert [it.pid for it in counters.workers] == old[:1]
        os.waitpid(old[1], os.WNOHANG)  # noqa: ASYNC222  # unreaped so far, as where process 1 reaps nobody


async def test_a_worker_that_does_not_answer_a_new_agent_is_killed(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(2)
        await bring(plane, state)
        old = await pids(plane)
        await plane.detach()
        os.kill(old[1], signal.SIGSTOP)
        heir = await made.plane(2, start=False)
        heir._fleet.response_timeout_s = 0.3
        await heir.start()
        assert (await pids(heir))[0] == old[0]
        assert workers.is_dead(old[1])
        await bring(heir, state)
        for _ in range(20):
            assert await made.ask(at) == server


@pytest.fixture(scope="session")
def other_program(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker of the next ABI version."""
    copy = tmp_path_factory.mktemp("other")
    for file in (Path(__file__).parents[3] / "worker").iterdir():
        text = file.read_text()
        (copy / file.name).write_text(
            text.replace(f"FL_ABI_VERSION {abi.ABI_VERSION}u", f"FL_ABI_VERSION {abi.ABI_VERSION + 1}u")
        )
    subprocess.run(["make", "-s", "-C", str(copy), "all", f"OUT={copy}"], check=True)
    return copy / "fairlead-worker"


async def test_workers_of_another_version_hand_over_and_drain(
    runtime: Path, program: Path, other_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(2)
        await bring(plane, state)
        held = [await made.client(at) for _ in range(6)]
        for client in held:
            assert await client.say() == server
        old = await pids(plane)
        await plane.detach()
        monkeypatch.setattr(abi, "ABI_VERSION", abi.ABI_VERSION + 1)
        made.program = other_program
        heir = await made.plane(2)
        assert made.kinds() == ["worker_outdated"] * 2
        assert not set(await pids(heir)) & set(old)
        assert await made.ask(at) == server  # the old ones go on until the new ones accept
        await bring(heir, state)
        assert made.kinds()[2:] == ["worker_draining"] * 2
        for _ in range(20):
            assert await made.ask(at) == server
        assert (await heir.counters()).services["web"].connections == 20
        assert [await client.say() for client in held] == [server] * 6
        await heir.detach()
        third = await made.plane(2)  # the old ones are still known
        assert len(third._fleet.old) == 2
        made.hang_up()
        await until(lambda: not third._fleet.old, 10, "the old ones end with their last flow")


async def test_a_worker_program_of_another_version_is_refused(runtime: Path, other_program: Path) -> None:
    async with lab(runtime, other_program) as made:
        with pytest.raises(DataPlaneError, match="of another version"):
            await made.plane(1)


async def test_old_workers_drain_also_when_nothing_is_to_be_opened(
    runtime: Path, program: Path, other_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(1)
        await bring(plane, one_service(await made.server())[0])
        await plane.detach()
        monkeypatch.setattr(abi, "ABI_VERSION", abi.ABI_VERSION + 1)
        made.program = other_program
        heir = await made.plane(1)
        for _ in range(4):
            await heir.observe()
        await until(lambda: not heir._fleet.old, 10, "they end")


async def test_somebody_elses_connection_to_a_worker_does_no_harm(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(1)
        await bring(plane, state)
        client = await made.client(at)
        assert await client.say() == server
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as intruder:
            intruder.connect(str(runtime / "worker-0.sock"))
            await until(lambda: made.changes == 1, 10, "the agent connected again")
        assert not plan(state, await plane.observe())
        assert await client.say() == server
        assert made.kinds() == []


async def test_stop_waits_for_flows_and_then_resets_them(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(2)
        await bring(plane, state)
        short, long = await made.client(at), await made.client(at)
        assert await short.say() == await long.say() == server
        started = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(plane.stop(drain_s=0.6))
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await made.client(at)
        assert await short.say() == server
        await short.close()
        assert await long.say() == server
        assert not stopping.done()
        await stopping
        assert 0.5 < asyncio.get_running_loop().time() - started < 3
        assert await long.say() == ""


async def test_a_stop_can_be_hurried(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        server = await made.server()
        state, at = one_service(server)
        plane = await made.plane(2)
        await bring(plane, state)
        client = await made.client(at)
        assert await client.say() == server
        stopping = asyncio.create_task(plane.stop(drain_s=60))
        await asyncio.sleep(0.05)
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        async with asyncio.timeout(3):
            await plane.stop(drain_s=0)
        assert await client.say() == ""


async def test_connections_that_wait_are_counted(runtime: Path, program: Path) -> None:
    async with lab(runtime, program) as made:
        plane = await made.plane(2)
        state, at = one_service(await made.server(), queue=5)
        full = replace(state, servers={key: it._replace(max_connections=1) for key, it in state.servers.items()})
        await bring(plane, full)
        assert await made.ask(at)
        waiting = await made.client(at)
        await until(lambda: _queued(plane) == 1, 5, "one waits")
        await bring(plane, state)
        assert await waiting.say()
        assert _queued(plane) == 0


def _queued(plane: ProxyDataPlane) -> int:
    memory = plane._need_memory()
    return memory.service(plane._registry.service_ids.get("web") or 0).queued
