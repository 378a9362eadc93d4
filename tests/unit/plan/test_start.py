"""One engine about to pass the GPU gate."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from memoria.gpu.device import Device
from memoria.plan.budgets import CONTEXT_BYTES, MARGIN_BYTES, Budget
from memoria.plan.free_memory import check_held, check_start
from memoria.plan.plan import make_plan
from memoria.text import GIB
from tests.unit.plans import config, gpu, host, process


def budget(device: Device, fraction: str) -> Budget:
    return make_plan(config({"generation": fraction}), {0: device}).budget("generation")


def test_an_engine_starts_beside_one_that_is_running() -> None:
    beside = gpu(process(10, 42.5, command="VLLM::EngineCore"))
    assert check_start(budget(beside, "0.60"), beside, {10}) is None


def test_a_start_needs_its_context_and_a_margin_beside_the_request() -> None:
    total = 80 * GIB
    needed = 40 * GIB + CONTEXT_BYTES + MARGIN_BYTES
    exactly = gpu(total=total, reserved=0, used=total - needed)
    one_byte_less = gpu(total=total, reserved=0, used=total - needed + 1)
    assert check_start(budget(exactly, "0.5"), exactly, ()) is None
    assert check_start(budget(one_byte_less, "0.5"), one_byte_less, ()) is not None


def test_a_start_is_refused_naming_others_but_never_memorias_own() -> None:
    full = gpu(process(10, 42.5, command="VLLM::EngineCore"), process(9912, 47))
    problem = check_start(budget(full, "0.60"), full, {10})
    assert str(problem) == (
        "error: generation needs 84.6 GiB, GPU 0 has 50.3 GiB free\n"
        "  pid 9912  guest  python train.py  47.0 GiB\n"
        "  memoria's own engines  42.5 GiB\n"
        "hint: stop pid 9912, or lower generation to 0.35"
    )


def test_memory_that_lingers_without_a_process_is_reported() -> None:
    lingering = gpu(used=100 * GIB)
    problem = check_start(budget(lingering, "0.60"), lingering, ())
    assert problem
    assert problem.where == ("processes the driver does not name  100.0 GiB",)


def test_a_full_gpu_gives_no_fraction_to_lower_to() -> None:
    full = gpu(process(9912, 139.5))
    problem = check_start(budget(full, "0.60"), full, ())
    assert problem
    assert problem.hint == "stop pid 9912"


def test_on_a_host_the_check_is_the_cpu_workers_own() -> None:
    exactly = host(total=10 * GIB, used=5 * GIB)
    one_byte_less = host(total=10 * GIB, used=5 * GIB + 1)
    assert check_start(budget(exactly, "0.5"), exactly, ()) is None
    assert check_start(budget(one_byte_less, "0.5"), one_byte_less, ()) is not None


@given(st.integers(4 * GIB, 200 * GIB), st.integers(1, 100), st.integers(0, 100))
def test_a_start_that_is_let_through_passes_vllms_own_check(total: int, hundredths: int, used: int) -> None:
    device = gpu(total=total, reserved=0, used=total * used // 100)
    allowed = check_start(budget(device, str(Decimal(hundredths) / 100)), device, ()) is None
    free_with_context = device.free_bytes - CONTEXT_BYTES
    vllm_starts = free_with_context >= -(-total * hundredths // 100)
    assert vllm_starts or not allowed


@given(st.integers(8 * GIB, 200 * GIB), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_a_plan_without_problems_lets_every_engine_start_in_turn(total: int, shares: list[int]) -> None:
    fractions = {f"engine-{number}": str(Decimal(share) / 100) for number, share in enumerate(shares)}
    plan = make_plan(config(fractions), {0: gpu(total=total, reserved=0)})
    used = 0
    for each in plan.devices[0].budgets:
        refused = check_start(each, gpu(total=total, reserved=0, used=used), ())
        assert not refused or plan.problems
        used = min(total, used + each.requested_bytes + each.context_bytes)


# ------------------------------------------------------------------ after it


def test_what_graphs_and_contexts_take_beside_a_fraction_is_no_problem() -> None:
    device = gpu(process(10, 42), process(11, 1))
    assert check_held(budget(device, "0.30"), device, {10, 11}) is None


def test_what_a_neighbour_gave_back_is_one() -> None:
    device = gpu(process(10, 70), process(11, 1), process(12, 60))
    problem = check_held(budget(device, "0.30"), device, {10, 11})
    assert problem
    assert problem.what.startswith("generation uses 71.0 GiB, its fraction is 41.9 GiB")


def test_without_figures_from_the_driver_there_is_no_problem() -> None:
    device = gpu(process(10, None), process(11, 100))
    assert check_held(budget(device, "0.30"), device, {10, 11}) is None
