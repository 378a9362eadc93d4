from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.errors import ConfigError, MemoryHeldError
from memoria.gpu.device import Device
from memoria.plan.budgets import CONTEXT_BYTES, MARGIN_BYTES, kv_cache_bytes, requested_bytes
from memoria.plan.plan import Plan, limit_problems, make_plan
from memoria.text import GIB
from tests.unit.plans import H200_RESERVED, H200_TOTAL, config, gpu, host, process

TWO = {"embedding": "0.30", "generation": "0.60"}
TOO_MUCH = {"embedding": "0.45", "generation": "0.60"}


def texts(plan: Plan) -> list[str]:
    return [str(problem) for problem in plan.problems]


def test_two_engines_fit_an_empty_gpu() -> None:
    plan = make_plan(config(TWO), {0: gpu()})
    assert plan.problems == ()
    plan.raise_for_problems()
    [device] = plan.devices
    assert [budget.engine for budget in device.budgets] == ["embedding", "generation"]
    assert device.fraction == Decimal("0.90")
    assert device.context_bytes == 2 * CONTEXT_BYTES
    assert device.unplanned_bytes + device.requested_bytes == H200_TOTAL - H200_RESERVED


def test_a_request_is_vllms_float_arithmetic_over_what_cuda_calls_the_total() -> None:
    plan = make_plan(config(TWO), {0: gpu()})
    assert plan.budget("embedding").requested_bytes == math.ceil((H200_TOTAL - H200_RESERVED) * 0.3)
    assert requested_bytes(100, Decimal("0.07")) == 8  # 100 * 0.07 is 7.000000000000001 to vLLM


def test_forty_and_fifty_five_hundredths_are_ninety_five() -> None:
    assert 0.40 + 0.55 > 0.95
    plan = make_plan(config({"a": "0.40", "b": "0.55"}), {0: gpu()})
    assert plan.problems == ()


def test_fractions_over_the_limit_are_shown_with_their_lines_and_what_to_lower() -> None:
    plan = make_plan(config(TOO_MUCH), {0: gpu()})
    assert texts(plan) == [
        "error: fractions add up to 1.05, the limit is 0.95\n"
        "  memoria.yaml:12  embedding.gpu_memory_utilization   0.45  62.9 GiB\n"
        "  memoria.yaml:19  generation.gpu_memory_utilization  0.60  83.9 GiB\n"
        "hint: lower generation to 0.50"
    ]
    with pytest.raises(ConfigError, match=r"the limit is 0\.95"):
        plan.raise_for_problems()


def test_lowering_one_engine_by_more_than_half_is_not_advised() -> None:
    plan = make_plan(config({"a": "0.50", "b": "0.50", "c": "0.50"}), {0: gpu()})
    assert plan.problems[0].hint == "lower the fractions by 0.55 in total"


def test_the_limit_is_checked_without_a_gpu() -> None:
    [problem] = limit_problems(config(TOO_MUCH))
    assert problem.where == (
        "memoria.yaml:12  embedding.gpu_memory_utilization   0.45",
        "memoria.yaml:19  generation.gpu_memory_utilization  0.60",
    )
    assert problem.hint == "lower generation to 0.50"
    assert limit_problems(config(TWO)) == ()
    assert limit_problems(config(TOO_MUCH, gpu_of={"embedding": 1})) == ()


def test_contexts_that_do_not_fit_beside_the_fractions_are_a_problem_of_the_file() -> None:
    small = gpu(total=8 * GIB, reserved=0)
    plan = make_plan(config({"a": "0.35", "b": "0.60"}), {0: small})
    assert texts(plan) == [
        "error: the engines need 7.6 GiB and 1.2 GiB for CUDA contexts, GPU 0 has 8.0 GiB in all\n"
        "  memoria.yaml:12  a.gpu_memory_utilization  0.35  2.8 GiB\n"
        "  memoria.yaml:19  b.gpu_memory_utilization  0.60  4.8 GiB\n"
        "hint: lower b to 0.49"
    ]
    assert make_plan(config({"a": "0.35", "b": "0.49"}), {0: small}).problems == ()


def test_a_device_smaller_than_the_contexts_is_called_too_small() -> None:
    plan = make_plan(config(TWO), {0: gpu(total=GIB, reserved=0)})
    assert plan.problems[0].hint == "the device is too small for these engines: run fewer on it"


def test_memory_held_by_others_is_named_and_is_not_the_files_fault() -> None:
    plan = make_plan(config(TWO), {0: gpu(process(9912, 47))})
    assert texts(plan) == [
        "error: the engines need 127.1 GiB with their CUDA contexts, GPU 0 has 92.8 GiB free\n"
        "  pid 9912  guest  python train.py  47.0 GiB\n"
        "hint: stop pid 9912, or lower the fractions by 0.25 in total"
    ]
    with pytest.raises(MemoryHeldError, match="pid 9912"):
        plan.raise_for_problems()


def test_the_fewest_processes_that_hold_enough_are_to_be_stopped() -> None:
    holders = [process(1, 2), process(2, 20), process(3, 30), process(4, None, user="root")]
    plan = make_plan(config(TWO), {0: gpu(*holders)})
    assert plan.problems[0].where == (
        "pid 3  guest  python train.py      30.0 GiB",
        "pid 2  guest  python train.py      20.0 GiB",
        "pid 1  guest  python train.py       2.0 GiB",
        "pid 4  root   python train.py  size unknown",
    )
    assert plan.problems[0].hint == "stop pid 3 and pid 2, or lower the fractions by 0.29 in total"


def test_memory_without_a_named_process_is_still_reported() -> None:
    plan = make_plan(config(TWO), {0: gpu(used=47 * GIB)})
    assert plan.problems[0].where == ("processes the driver does not name  47.0 GiB",)
    assert plan.problems[0].hint == "free 34.3 GiB, or lower the fractions by 0.25 in total"


def test_a_long_list_of_holders_is_cut() -> None:
    plan = make_plan(config(TWO), {0: gpu(*(process(pid, 10) for pid in range(1, 9)))})
    assert len(plan.problems[0].where) == 6
    assert plan.problems[0].where[-1] == "and 3 more"


def test_a_wrong_file_on_a_full_gpu_shows_both_and_is_a_wrong_file() -> None:
    plan = make_plan(config(TOO_MUCH), {0: gpu(process(9912, 47))})
    assert [len(plan.config_problems), len(plan.memory_problems)] == [1, 1]
    with pytest.raises(ConfigError, match="pid 9912"):
        plan.raise_for_problems()


def test_what_memorias_running_engines_hold_is_free_to_them() -> None:
    engines = [process(10, 42, command="VLLM::EngineCore"), process(11, 84, command="VLLM::EngineCore")]
    running = gpu(*engines)
    assert make_plan(config(TWO), {0: running}).memory_problems
    assert make_plan(config(TWO), {0: running}, own_pids={10, 11}).problems == ()


def test_engines_on_two_gpus_are_planned_apart() -> None:
    plan = make_plan(config(TOO_MUCH, gpu_of={"generation": 1}), {0: gpu(), 1: gpu(index=1)})
    assert plan.problems == ()
    assert [device.device.index for device in plan.devices] == [0, 1]
    assert plan.device("generation").index == 1


def test_an_index_and_a_uuid_of_one_gpu_are_one_gpu() -> None:
    plan = make_plan(config(TOO_MUCH, gpu_of={"generation": "GPU-0"}), {0: gpu(), "GPU-0": gpu()})
    assert len(plan.devices) == 1
    assert plan.config_problems


def test_both_gpus_problems_are_reported_at_once() -> None:
    fractions = {"a": "0.50", "b": "0.50", "c": "0.60", "d": "0.60"}
    plan = make_plan(config(fractions, gpu_of={"c": 1, "d": 1}), {0: gpu(), 1: gpu(index=1)})
    assert [problem.hint for problem in plan.problems] == ["lower b to 0.45", "lower d to 0.35"]


def test_on_a_host_there_are_no_contexts_and_no_process_is_proposed_to_be_stopped() -> None:
    on_host = config({"a": "0.40", "b": "0.55"}, device="cpu")
    assert make_plan(on_host, {0: host(total=10 * GIB, used=0)}).problems == ()
    plan = make_plan(on_host, {0: host(process(7, 2, command="browser"), total=10 * GIB, used=2 * GIB)})
    assert texts(plan) == [
        "error: the engines need 9.5 GiB, this host has 8.0 GiB free\n"
        "  pid 7  guest  browser  2.0 GiB\n"
        "hint: free 1.5 GiB, or lower the fractions by 0.16 in total"
    ]


def test_a_fixed_kv_cache_larger_than_the_budget_is_refused() -> None:
    wrong = config({"a": "0.10"}, vllm_args={"kv_cache_memory_bytes": "15G"})
    [problem] = make_plan(wrong, {0: gpu()}).config_problems
    assert problem.what == "the KV cache of a is 15.0 GiB, but its whole budget is 14.0 GiB"
    assert problem.where == ("a.kv_cache_memory_bytes",)
    right = config({"a": "0.10"}, vllm_args={"kv_cache_memory_bytes": 64 * 2**20})
    assert make_plan(right, {0: gpu()}).problems == ()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (67108864, 67108864),
        ("67108864", 67108864),
        ("25g", 25 * 10**9),
        ("1G", 2**30),
        ("25.6k", 25600),
        ("25.6G", None),
        ("many", None),
        (None, None),
    ],
)
def test_a_kv_cache_size_is_read_as_vllm_reads_it(value: object, size: int | None) -> None:
    assert kv_cache_bytes({"kv_cache_memory_bytes": value}) == size


hundredths = st.integers(1, 100).map(lambda number: str(Decimal(number) / 100))
thousandths = st.integers(1, 1000).map(lambda number: str(Decimal(number) / 1000))
engines = st.lists(hundredths | thousandths, min_size=1, max_size=5).map(
    lambda fractions: {f"engine-{number}": fraction for number, fraction in enumerate(fractions)}
)
totals = st.integers(4 * GIB, 200 * GIB)


@given(engines, hundredths, totals)
def test_a_sum_over_the_limit_is_always_reported(fractions: dict[str, str], limit: str, total: int) -> None:
    plan = make_plan(config(fractions, limit=limit), {0: gpu(total=total, reserved=0)})
    over = sum(map(Decimal, fractions.values())) > Decimal(limit)
    assert over == any("add up to" in problem.what for problem in plan.config_problems)


@given(engines, totals, st.integers(0, 100))
def test_a_plan_without_problems_fits_and_one_that_fits_has_no_problems(
    fractions: dict[str, str], total: int, used_percent: int
) -> None:
    device = gpu(total=total, reserved=0, used=total * used_percent // 100)
    plan = make_plan(config(fractions, limit="1"), {0: device})
    needed = sum(math.ceil(total * float(fraction)) + CONTEXT_BYTES for fraction in fractions.values())
    within = sum(map(Decimal, fractions.values())) <= 1
    assert (not plan.problems) == (within and needed + MARGIN_BYTES <= device.free_bytes)


@given(st.data(), engines, totals)
def test_the_order_of_engines_does_not_change_whether_they_fit(
    data: st.DataObject, fractions: dict[str, str], total: int
) -> None:
    shuffled = dict(data.draw(st.permutations(list(fractions.items()))))
    device = gpu(process(1, 1), total=total, reserved=0)
    one, other = (make_plan(config(order), {0: device}) for order in (fractions, shuffled))
    assert len(one.config_problems) == len(other.config_problems)
    assert len(one.memory_problems) == len(other.memory_problems)


@given(engines, totals)
def test_a_plan_depends_on_nothing_but_its_arguments(fractions: dict[str, str], total: int) -> None:
    wanted = config(fractions)
    devices: dict[int | str, Device] = {0: gpu(process(1, 2), total=total)}
    before = (repr(wanted), repr(devices))
    assert make_plan(wanted, devices) == make_plan(wanted, devices)
    assert (repr(wanted), repr(devices)) == before


@given(engines, totals)
def test_a_hint_to_lower_one_engine_makes_the_plan_fit(fractions: dict[str, str], total: int) -> None:
    device: dict[int | str, Device] = {0: gpu(total=total, reserved=0)}
    plan = make_plan(config(fractions), device)
    for problem in plan.config_problems:
        if problem.hint and problem.hint.startswith("lower engine-"):
            _, name, _, fraction = problem.hint.split()
            assert make_plan(config(fractions | {name: fraction}), device).problems == ()


def test_a_hair_over_the_limit_is_shown_with_its_digits() -> None:
    (problem,) = limit_problems(config({"embedding": "0.35", "generation": "0.6000001"}))
    assert problem.what == "fractions add up to 0.9500001, the limit is 0.95"
    assert problem.where[1].endswith("0.6000001")
    assert problem.hint == "lower generation to 0.60"
