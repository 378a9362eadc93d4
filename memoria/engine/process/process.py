"""One engine's process tree: spawned into a session of its own, watched without being reaped, killed whole.

The order at its end matters. A leader that has exited but is not reaped still owns its process-group id, so
the group can be killed without hitting an unrelated process; only then is the leader reaped. Processes that
left the group (a second fork with its own setsid) are found by the MEMORIA_START marker in their environment.
That takes a descriptor and may fail, so the group, which needs none, is killed first.
vLLM renames its processes with setproctitle, which overwrites the environment unless SPT_NOENV is set.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memoria.aio import in_daemon_thread
from memoria.engine.process.descriptors import restore_limit
from memoria.engine.process.marker import START, kill_one
from memoria.engine.process.table import ProcessTable
from memoria.vllm.facts import ExitStatus

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # prctl(2)


def _prepare_child() -> Callable[[], None]:
    """A hook between fork and exec: the child gets SIGKILL when the forking *thread* ends (prctl(2)), so that
    must be the main one. libc is loaded before the fork: the child may only make system calls."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the call above
            os._exit(1)
        restore_limit()

    return prepare


@dataclass(frozen=True, slots=True)
class Cleared:
    """Process ids. `left`: still alive, and killed now; `outlived`: those of them that outlived their leader
    and are reported for the first time. Not those of its group that end a moment after it, as Python's
    resource tracker always does."""

    left: set[int]
    outlived: set[int]


class EngineProcess:
    """A running engine. `start_id` marks every process of its tree (environment variable MEMORIA_START)."""

    def __init__(
        self, popen: subprocess.Popen[bytes], pidfd: int, start_id: str, process_table: ProcessTable
    ) -> None:
        self._popen, self._pidfd, self._start_id, self._process_table = popen, pidfd, start_id, process_table
        self._outlived: set[int] = set()
        self._strays: set[int] = set()  # at the last look
        self.known = {popen.pid}  # every process of the tree ever seen; the driver may name dead ones
        self._exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    def __repr__(self) -> str:
        state = "exited" if self._exited.done() else "running"
        return f"<EngineProcess pid={self.pid} {state}>"

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        start_id: str,
        log: int,
        process_table: ProcessTable,
    ) -> EngineProcess:
        """`log`: the file descriptor that the child writes to; a pipe could stall it. Must be called from the
        main thread. Raises `OSError` if the program cannot be started."""
        popen = subprocess.Popen(
            list(argv),
            env={**env, "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_prepare_child(),  # noqa: PLW1509 - only system calls, see there
        )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:  # out of descriptors: what cannot be watched must not run
            popen.kill()
            popen.wait()
            raise
        return cls(popen, pidfd, start_id, process_table)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return not self._exited.done()

    async def exited(self) -> ExitStatus:
        """Wait for the leader to end; `clear` reaps it."""
        return await asyncio.shield(self._exited)

    def terminate(self) -> None:
        """SIGTERM to the leader alone: vLLM then ends its own children."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self._popen.returncode is None:
            _kill_group(self.pid)

    async def clear(self) -> Cleared:
        """Kill what is left of the tree, and reap the leader if it has ended. Repeat until nothing is left: a
        process may fork after it was found and before it is killed. Raises `OSError` if the processes outside
        the group cannot be found; the group is killed all the same."""
        self.kill()
        if self._popen.returncode is None and not self.is_running:
            self._popen.wait()
            os.close(self._pidfd)
        left = await self.tree()
        if self._popen.returncode is None:  # the leader may have ended meanwhile, and must be reaped
            left.add(self.pid)
        strays = left - {self.pid}
        outlived = {pid for pid in strays if pid in self._strays or not self._is_in_group(pid)}
        if strays:
            await in_daemon_thread(lambda: self._kill_each(strays))
        new = outlived - self._outlived if not self.is_running else set()
        self._outlived |= new
        self._strays = strays
        return Cleared(left, new)

    async def tree(self) -> set[int]:
        """Ids of all living processes of this start, in any session. Raises `OSError` if they cannot be
        found."""
        living = set((await self._process_table.look()).get(self._start_id, ()))
        if self.is_running:
            living.add(self.pid)
        self.known |= living
        return living

    def _is_in_group(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self.pid
        except ProcessLookupError:
            return True  # it has ended meanwhile

    def _kill_each(self, pids: set[int]) -> None:
        for pid in pids:
            kill_one(pid, START, self._start_id)

    def _signal(self, number: int) -> None:
        if not self._exited.done():
            signal.pidfd_send_signal(self._pidfd, number)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        except OSError as error:  # another has reaped it; that it has ended must be seen all the same
            logger.warning("how process %d ended is not known: %s", self.pid, error)
            info = None
        if self._exited.done():
            return
        if info is None:
            self._exited.set_result(ExitStatus(code=None))
        elif info.si_code == os.CLD_EXITED:
            self._exited.set_result(ExitStatus(code=info.si_status))
        else:
            self._exited.set_result(ExitStatus(signal=info.si_status))


def _kill_group(pgid: int) -> None:
    try:
        os.killpg(pgid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        logger.warning("process group %d holds a process of another user", pgid)
