"""What an engine says of its memory is compared with the plan, kept, and given back to it at a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.admin.status.status import MeasuredMemory
from tests.integration.daemon import Box, RunningDaemon, until
from tests.unit.checkpoints import LLAMA_8B

# The stub logs 37440 tokens: 2340 blocks of 16.
LAYER = 2 * 8 * 128 * 2
STUB_BYTES = 2340 * 16 * 32 * LAYER
MODEL = """\
  second:
    model: ./models/second
    gpu_memory_utilization: 0.05
    max_model_len: 4096
    learn: true
"""


@pytest.fixture
def box(tmp_path: Path, nvml_library: Path) -> Iterator[Box]:
    made = Box(tmp_path, nvml_library)
    (made.folder / "models" / "second" / "config.json").write_text(json.dumps(LLAMA_8B))
    made.configure(top="gpu_limit: 0.95", more_engines=MODEL)
    made.vllm.set_faults("second", load_seconds=0.0)
    yield made
    made.close()


def records(box: Box) -> list[Path]:
    return list(box.folder.glob(".local/state/memoria/*/plan/second.json"))


def arguments(daemon: RunningDaemon) -> list[str]:
    return Path(f"/proc/{daemon.leader('second')}/cmdline").read_bytes().decode().split("\0")


def restarted(daemon: RunningDaemon) -> None:
    daemon.forget()
    os.kill(daemon.leader("second"), signal.SIGKILL)
    daemon.told("second", "ready")


def test_a_restart_takes_the_cache_that_the_first_start_measured(box: Box) -> None:
    daemon = box.start()
    daemon.until_ready()
    assert "--kv-cache-memory-bytes" not in arguments(daemon)
    until(lambda: bool(records(box)))
    record = json.loads(records(box)[0].read_text())
    assert (record["kv_tokens"], record["kv_bytes"]) == (37_440, STUB_BYTES)
    (second,) = (engine for engine in daemon.status().engines if engine.name == "second")
    weights = next(term for term in second.plan if term.term == "weights_bytes")
    assert weights.said == record["weights_bytes"] < weights.planned == record["planned_weights_bytes"]
    assert weights.notable
    assert second.memory_plan is not None
    assert second.memory_plan.weights_bytes == weights.planned
    assert second.memory_plan.measured == MeasuredMemory(weights.said, record["graph_bytes"], STUB_BYTES)
    assert "its weights take 92% less than planned, 1.2 instead of 15.0 GiB" in box.call("status").stdout
    restarted(daemon)
    given = arguments(daemon)
    assert given[given.index("--kv-cache-memory-bytes") + 1] == str(STUB_BYTES)
    assert daemon.stop() == 0


def test_a_record_of_other_settings_is_not_used(box: Box) -> None:
    daemon = box.start()
    daemon.until_ready()
    until(lambda: bool(records(box)))
    assert daemon.stop() == 0
    box.configure(top="gpu_limit: 0.95", more_engines=MODEL.replace("0.05", "0.04"))
    daemon = box.start()
    daemon.until_ready()
    assert "--kv-cache-memory-bytes" not in arguments(daemon)
    assert daemon.stop() == 0


def test_a_start_that_fails_with_the_learnt_size_makes_it_forgotten(box: Box) -> None:
    daemon = box.start()
    daemon.until_ready()
    until(lambda: bool(records(box)))
    box.vllm.set_faults("second", fail_at="loading")
    daemon.forget()
    os.kill(daemon.leader("second"), signal.SIGKILL)
    until(lambda: not records(box))
    assert daemon.stop() == 0


def test_the_next_plan_knows_what_was_learnt(box: Box) -> None:
    daemon = box.start()
    daemon.until_ready()
    until(lambda: bool(records(box)))
    assert daemon.stop() == 0
    planned = json.loads(box.call("plan", "--json").stdout)
    (second,) = [e for e in planned["devices"][0]["engines"] if e["name"] == "second"]
    assert second["learned"]
    assert second["weights_bytes"] == round(1.19 * 2**30)
    terms = ("weights_bytes", "step_bytes", "graph_bytes", "kv_bytes")
    assert sum(second[term] for term in terms) == second["requested_bytes"]
