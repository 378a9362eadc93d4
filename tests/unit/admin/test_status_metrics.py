"""A status in Prometheus's terms."""

from __future__ import annotations

from dataclasses import replace

from memoria.admin.status.status import DeviceStatus, GuardStatus, Status
from memoria.admin.telemetry.exposition import Exposition
from memoria.admin.telemetry.metrics import status_families
from memoria.text import GIB
from tests.promtool import complaints
from tests.unit.admin.test_status import ENGINE, STATUS

GPU = DeviceStatus("gpu 0", "NVIDIA H200", 100 * GIB, 100 * GIB, 75 * GIB, 25 * GIB)
GENERATION = replace(ENGINE, used_bytes=40 * GIB, budget_bytes=60 * GIB)
EMBEDDING = replace(ENGINE, name="embedding", used_bytes=20 * GIB, in_flight=3, held=2, limit=8)
BOTH = replace(STATUS, devices=(GPU,), engines=(GENERATION, EMBEDDING))
GUARD = GuardStatus("generation", ("embedding",), target=0.05, gap_p95=0.08, limit=4, lowered=7)


def values(status: Status, answering: tuple[str, ...] = ()) -> dict[str, float]:
    text = Exposition(status_families(status, answering)).render().decode()
    assert complaints(text) == []
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_a_gpus_memory_is_shown_by_who_holds_it() -> None:
    found = values(BOTH)
    on = 'device="gpu 0"'
    assert found[f"memoria_device_memory_bytes{{{on}}}"] == 100 * GIB
    assert found[f"memoria_device_memory_free_bytes{{{on}}}"] == 25 * GIB
    assert found[f"memoria_device_memory_others_bytes{{{on}}}"] == 15 * GIB
    assert found[f'memoria_engine_memory_bytes{{{on},engine="generation"}}'] == 40 * GIB
    assert found[f'memoria_engine_memory_budget_bytes{{{on},engine="generation"}}'] == 60 * GIB


def test_what_is_not_known_is_left_out_never_zero() -> None:
    found = values(replace(BOTH, engines=(GENERATION, replace(EMBEDDING, used_bytes=None))))
    assert not [name for name in found if "others" in name]
    assert 'memoria_engine_memory_bytes{device="gpu 0",engine="embedding"}' not in found
    blind = values(replace(BOTH, devices=(replace(GPU, used_bytes=None, free_bytes=None),)))
    assert not [name for name in blind if "free" in name or "others" in name]


def test_an_engine_without_a_process_holds_nothing() -> None:
    gone = replace(EMBEDDING, used_bytes=None, pid=None, state="backoff")
    found = values(replace(BOTH, engines=(GENERATION, gone)))
    assert found['memoria_device_memory_others_bytes{device="gpu 0"}'] == 35 * GIB


def test_an_engine_is_in_one_state() -> None:
    found = values(replace(BOTH, engines=(GENERATION, replace(EMBEDDING, state="backoff"))), ("generation",))
    states = [name for name, value in found.items() if "_state{" in name and value == 1]
    assert states == [
        'memoria_engine_state{engine="generation",state="ready"}',
        'memoria_engine_state{engine="embedding",state="backoff"}',
    ]
    for name in ("ready", "metrics_up"):
        assert found[f'memoria_engine_{name}{{engine="generation"}}'] == 1
        assert found[f'memoria_engine_{name}{{engine="embedding"}}'] == 0


def test_requests_are_shown_by_where_they_are() -> None:
    found = values(BOTH)
    assert [
        found[f'memoria_requests_{what}{{engine="embedding"}}'] for what in ("in_flight", "held", "limit")
    ] == [
        3,
        2,
        8,
    ]


def test_the_guard_is_shown_where_there_is_one() -> None:
    assert not [name for name in values(BOTH) if "guard" in name]
    guarded = values(replace(BOTH, guard=GUARD))
    assert {name: value for name, value in guarded.items() if "guard" in name} == {
        'memoria_guard_active{engine="generation"}': 1,
        'memoria_guard_limit{engine="generation"}': 4,
        'memoria_guard_target_seconds{engine="generation"}': 0.05,
        'memoria_guard_gap_p95_seconds{engine="generation"}': 0.08,
        'memoria_guard_lowered_total{engine="generation"}': 7,
    }
    idle = values(replace(BOTH, guard=replace(GUARD, gap_p95=None, limit=None)))
    assert idle['memoria_guard_active{engine="generation"}'] == 0
    assert not [name for name in idle if "guard_limit" in name or "gap" in name]


def test_the_build_is_values() -> None:
    build = next(name for name in values(BOTH) if name.startswith("memoria_build_info"))
    assert build.startswith('memoria_build_info{version="0.1.0",python="3.')
