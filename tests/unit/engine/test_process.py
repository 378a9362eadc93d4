"""Real process trees: how they are watched, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memoria.engine.process.marker import kill_marked, marked
from memoria.engine.process.process import Cleared, EngineProcess
from memoria.engine.process.table import ProcessTable
from memoria.vllm.facts import ExitStatus
from tests.fakes import until

Spawn = Callable[..., EngineProcess]
NOTHING_LEFT = Cleared(set(), set())

# Writes the pid of a grandchild that left the session and the parent, then does what is appended.
FORKS_TWICE = """
import os, sys, time
readable, writable = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(writable, str(os.getpid()).encode())
        os.close(writable)
        time.sleep(600)
    os._exit(0)
os.wait()
os.close(writable)
print(os.read(readable, 20).decode(), flush=True)
"""


@pytest.fixture
def start_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


@pytest.fixture
def spawn(log: Path, start_id: str) -> Iterator[Spawn]:
    def start(script: str, *argv: str) -> EngineProcess:
        command = argv or (sys.executable, "-S", "-u", "-c", script)
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return EngineProcess.spawn(
                command,
                {"MEMORIA_START": start_id, "MARK": "a"},
                start_id=start_id,
                log=descriptor,
                process_table=ProcessTable(),
            )
        finally:
            os.close(descriptor)

    yield start
    kill_marked("MEMORIA_START", start_id)


def text(log: Path) -> str:
    return log.read_text()


async def said(log: Path) -> str:
    """The first thing that the engine writes."""
    await until(lambda: text(log).endswith("\n"))
    return text(log).strip()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def ended(pid: int) -> bool:
    """Gone, or a zombie that only waits for a parent which is not ours."""
    try:
        return is_zombie(pid)
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until_ended(pid: int) -> None:
    await until(lambda: ended(pid))


async def test_an_engine_has_a_session_of_its_own(spawn: Spawn) -> None:
    process = spawn("import time; time.sleep(600)")
    assert os.getsid(process.pid) == process.pid == os.getpgid(process.pid)
    assert os.getsid(process.pid) != os.getsid(0)
    process.kill()
    await process.exited()
    await process.clear()


async def test_an_engine_writes_its_log_by_itself(spawn: Spawn, log: Path) -> None:
    process = spawn("import sys; print('out'); print('err', file=sys.stderr)")
    assert await process.exited() == ExitStatus(code=0)
    assert text(log) == "out\nerr\n"
    await process.clear()


async def test_an_engine_has_no_input_and_no_descriptor_beside_its_log(spawn: Spawn, log: Path) -> None:
    process = spawn("import os, sys; print(sys.stdin.read() == '', sorted(os.listdir('/proc/self/fd'))[:-1])")
    await process.exited()
    assert text(log) == "True ['0', '1', '2']\n"
    await process.clear()


async def test_an_engine_has_the_limit_of_descriptors_that_memoria_was_given(spawn: Spawn, log: Path) -> None:
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given[0] - 1, given[1]))  # as if it was another since
    try:
        process = spawn("import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))")
        await process.exited()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, given)
    assert text(log) == f"{given[0]} {given[1]}\n"
    await process.clear()


async def test_the_end_of_a_leader_whose_status_cannot_be_read_is_seen(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reaped(*_: object) -> None:
        raise ChildProcessError(10, "No child processes")

    with monkeypatch.context() as patch:
        patch.setattr(os, "waitid", reaped)
        process = spawn("pass")
        async with asyncio.timeout(10):
            assert await process.exited() == ExitStatus()
    await process.clear()


async def test_an_exit_code_is_seen_while_the_leader_stays_unreaped(spawn: Spawn) -> None:
    process = spawn("raise SystemExit(3)")
    assert await process.exited() == ExitStatus(code=3)
    assert is_zombie(process.pid)
    assert await process.exited() == ExitStatus(code=3)
    assert await process.clear() == NOTHING_LEFT
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


async def test_the_signal_that_ended_it_is_seen(spawn: Spawn) -> None:
    process = spawn("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert await process.exited() == ExitStatus(signal=signal.SIGSEGV)
    await process.clear()


async def test_a_leader_that_ignores_sigterm_is_killed(spawn: Spawn, log: Path) -> None:
    process = spawn(
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('no'))\n"
        "print('up')\n"
        "while True: time.sleep(600)"
    )
    assert await said(log) == "up"
    process.terminate()
    await until(lambda: "no" in text(log))
    process.kill()
    assert await process.exited() == ExitStatus(signal=signal.SIGKILL)
    await process.clear()


async def test_a_leader_that_ends_while_it_is_looked_for_is_reaped_by_the_next_clearing(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn("import time; time.sleep(600)")

    async def look() -> dict[str, set[int]]:
        await process.exited()
        return {}

    monkeypatch.setattr(process._process_table, "look", look)
    assert (await process.clear()).left == {process.pid}
    assert is_zombie(process.pid)
    assert await process.clear() == NOTHING_LEFT
    with pytest.raises(FileNotFoundError):
        is_zombie(process.pid)


async def test_terminate_asks_the_leader_alone(spawn: Spawn, log: Path) -> None:
    process = spawn("import os, time\npid = os.fork()\nprint(pid) if pid else None\ntime.sleep(600)")
    child = int(await said(log))
    process.terminate()
    assert await process.exited() == ExitStatus(signal=signal.SIGTERM)
    assert not ended(child)
    await process.clear()
    await until_ended(child)


async def test_a_child_that_left_the_session_is_found_by_its_marker_and_killed(
    spawn: Spawn, log: Path
) -> None:
    process = spawn(FORKS_TWICE)
    assert await process.exited() == ExitStatus(code=0)
    grandchild = int(await said(log))
    assert os.getsid(grandchild) != process.pid
    assert await process.tree() == {grandchild}
    assert await process.clear() == Cleared({grandchild}, {grandchild})
    await until_ended(grandchild)
    assert await process.tree() == set()
    assert await process.clear() == NOTHING_LEFT


async def test_what_appears_after_the_first_clearing_is_killed_by_the_next(
    spawn: Spawn, start_id: str
) -> None:
    process = spawn("pass")
    await process.exited()
    await process.clear()
    late = await asyncio.create_subprocess_exec(
        "/bin/sleep", "600", env={"MEMORIA_START": start_id}, start_new_session=True
    )
    await until(lambda: marked("MEMORIA_START", start_id) == [late.pid])  # it has become sleep
    assert await process.clear() == Cleared({late.pid}, {late.pid})
    assert await late.wait() == -signal.SIGKILL


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_without_a_descriptor_the_group_is_killed_and_the_rest_is_not_taken_for_gone(
    spawn: Spawn, log: Path
) -> None:
    process = spawn("import os, time\n" + FORKS_TWICE + "if os.fork() == 0: time.sleep(600)\nprint('up')")
    await process.exited()
    (grandchild,) = {int(line) for line in text(log).split() if line.isdigit()}
    tree = await process.tree()
    assert len(tree) == 2
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        await process.clear()
    await until(lambda: ended(*(tree - {grandchild})))
    assert not ended(grandchild)
    assert await process.clear() == Cleared({grandchild}, {grandchild})
    await until_ended(grandchild)
    assert await process.clear() == NOTHING_LEFT


async def test_a_title_set_by_vllm_leaves_the_marker_readable(spawn: Spawn, log: Path) -> None:
    process = spawn("import os; print(os.environ['SPT_NOENV'])")
    await process.exited()
    assert text(log) == "1\n"
    await process.clear()


async def test_signals_to_an_engine_that_is_gone_do_nothing(spawn: Spawn) -> None:
    process = spawn("pass")
    await process.exited()
    process.terminate()
    await process.clear()
    process.terminate()
    process.kill()
    assert repr(process) == f"<EngineProcess pid={process.pid} exited>"


async def test_an_executable_that_is_not_there_is_an_error(spawn: Spawn) -> None:
    with pytest.raises(FileNotFoundError):
        spawn("", "/nowhere/vllm")


async def test_marked_needs_the_whole_value(spawn: Spawn, start_id: str) -> None:
    process = spawn("import time; time.sleep(600)")
    await until(lambda: marked("MEMORIA_START", start_id) == [process.pid])  # it has become Python
    assert marked("MEMORIA_START", start_id[:-1]) == []
    assert marked("START", start_id) == []
    process.kill()
    await process.exited()
    await process.clear()


async def test_a_supervisor_that_is_killed_takes_its_engine_along(tmp_path: Path, start_id: str) -> None:
    script = f"""
import asyncio, os, sys
from memoria.engine.process.table import ProcessTable
from memoria.engine.process.process import EngineProcess

async def main():
    log = os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT)
    engine = EngineProcess.spawn(
        ["/bin/sleep", "600"], {{}}, start_id={start_id!r}, log=log, process_table=ProcessTable()
    )
    print(engine.pid, flush=True)
    await engine.exited()

asyncio.run(main())
"""
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout is not None
    engine = int(await supervisor.stdout.readline())
    assert not ended(engine)
    supervisor.kill()
    await supervisor.wait()
    await until_ended(engine)
