"""The relay's benchmark works, and what only it can show: no race with kept connections, no descriptor lost.

Nothing here is about time. `pytest -m long` repeats the last two in their full length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.relay import table
from tests.bench.relay.__main__ import main, started
from tests.bench.relay.load_program import Kind, Load, Result, Work
from tests.bench.relay.measures import FIGURES
from tests.bench.relay.targets import Target
from tests.programs import need_compiler


@pytest.fixture(autouse=True)
def compiler() -> str:
    """For the load program."""
    return need_compiler()


@pytest.fixture
def rig() -> Iterator[tuple[Load, Target]]:
    with started(["memoria"]) as (load, _, targets):
        yield load, targets["memoria"]


def test_the_benchmark_runs_and_every_answer_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    """Peers that are not installed here are left out, and named."""
    assert main(["--smoke", "--markdown", "--only", "memoria,nginx"]) == 0
    shown = capsys.readouterr()
    header, _, *rows = shown.out.splitlines()
    assert "memoria" in header
    assert ("nginx" in header) is ("left out: nginx" not in shown.err)
    assert len(rows) == len(FIGURES)
    assert not any(row.split("|")[2].strip() == table.UNKNOWN for row in rows)


def _lengths(short: int, long: int) -> list[object]:
    return [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.long)]


@pytest.mark.parametrize("kind", ["small", "embedding"])
@pytest.mark.parametrize("requests", _lengths(5_000, 100_000))
def test_an_upstream_that_closes_idle_connections_is_never_noticed(
    rig: tuple[Load, Target], requests: int, kind: Kind
) -> None:
    """Both sides wait for random times of the same length, so that many a request meets the closing. Nor does
    it cost a completion, which would not be asked for again had the upstream read it."""
    load, memoria = rig
    load.close_idle(2_000)
    result = load.run(memoria.port, Work(kind, 32, requests=requests, pause_us=2_000))
    assert (result.operations, result.errors, result.wrong) == (requests, 0, 0), result.trouble


@pytest.mark.parametrize("connections", _lengths(1_000, 10_000))
def test_connections_one_after_another_leave_no_descriptor_behind(
    rig: tuple[Load, Target], connections: int
) -> None:
    load, memoria = rig
    _one_by_one(load, memoria, 100)  # what is opened once and kept is open now
    before = _descriptors(memoria)
    result = _one_by_one(load, memoria, connections)
    assert (result.operations, result.errors, result.wrong) == (connections, 0, 0), result.trouble
    # a few come and go with memoria's own work, a look at an engine's metrics, say
    assert _descriptors(memoria) <= before + connections // 100


def _one_by_one(load: Load, memoria: Target, count: int) -> Result:
    result = load.run(memoria.port, Work("small", 1, requests=count, reconnect=True))
    load.run(
        memoria.port, Work("small", 1, requests=1)
    )  # by its answer the one before it is closed here, too
    return result


def _descriptors(memoria: Target) -> int:
    return len(list(Path(f"/proc/{memoria.pid}/fd").iterdir()))
