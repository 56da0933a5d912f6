# SPDX-License-Identifier: Apache-2.0
"""The ``exec`` probe: a program of the operator's that ends with status 0 passes.

Invariants: the program has a process group of its own, which is killed when the attempt ends, however it ends; its
output is read to the end, so that it never blocks on it, and the first 4 kB are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from fairlead.model.health import ProbeTarget
from fairlead.model.reasons import DownReason
from fairlead.probes.deadline import Deadline
from fairlead.probes.outcome import ProbeFailed, printable

OUTPUT_LIMIT_BYTES = 4096


async def execute(target: ProbeTarget, deadline: Deadline) -> str:
    """Run the program with FAIRLEAD_ADDRESS and FAIRLEAD_PORT in its environment.

    Raises:
        ProbeFailed: It could not be started, took too long, or ended with another status.
    """
    command = target.monitor.exec
    if command is None or not command.argv:
        raise ProbeFailed(DownReason.LOCAL_ERROR, "no program is set: set `command` in its health")
    deadline.doing = printable(command.argv[0], 40)
    program = _Program(command.argv, target)
    try:
        status = await program.ended(deadline)
    finally:
        program.close()
    said = printable(program.output.strip().partition(b"\n")[0])
    if status:
        how = f"exit status {status}" if status > 0 else f"ended by {_signal_name(-status)}"
        raise ProbeFailed(DownReason.BAD_STATUS, f"{how}: {said}" if said else how)
    return said or "exit status 0"


class _Program:
    """A running program, its output, and a descriptor that becomes readable when it has ended."""

    def __init__(self, argv: tuple[str, ...], target: ProbeTarget) -> None:
        self._loop = asyncio.get_running_loop()
        self.output = b""
        monitor = target.monitor
        address, port = monitor.address or target.endpoint.address, monitor.port or target.endpoint.port
        reader, writer = _pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the operator's own program, no shell
                argv,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
                env={**os.environ, "FAIRLEAD_ADDRESS": str(address), "FAIRLEAD_PORT": str(port)},
            )
        except (OSError, ValueError) as error:
            os.close(reader)
            raise ProbeFailed(
                DownReason.LOCAL_ERROR, f"this node: cannot run {printable(argv[0], 40)}: {printable(str(error))}"
            ) from error
        finally:
            os.close(writer)
        self._reader = reader
        try:
            self._end = os.pidfd_open(self._process.pid)
        except OSError as error:
            self._kill_group()
            self._process.wait()
            os.close(reader)
            raise ProbeFailed(DownReason.LOCAL_ERROR, f"this node: no pidfd: {error.strerror}") from error
        self._loop.add_reader(reader, self._read)

    async def ended(self, deadline: Deadline) -> int:
        """The exit status, or the negative number of a signal."""
        await deadline.readable(self._end)
        self._kill_group()
        return self._process.wait()

    def close(self) -> None:
        """Kill the group unless it has ended; the program is reaped when it has died."""
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        if self._process.returncode is not None:
            os.close(self._end)
            return
        self._kill_group()
        self._loop.add_reader(self._end, self._reap)

    def _kill_group(self) -> None:
        """Only before the program is reaped: until then its number cannot be given to a stranger."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._end)
        os.close(self._end)
        self._process.wait()

    def _read(self) -> None:
        data = os.read(self._reader, 65536)
        self.output += data[: OUTPUT_LIMIT_BYTES - len(self.output)]
        if not data:
            self._loop.remove_reader(self._reader)


def _pipe() -> tuple[int, int]:
    """Reading and writing end."""
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise ProbeFailed(DownReason.LOCAL_ERROR, f"this node: no pipe: {error.strerror}") from error


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
