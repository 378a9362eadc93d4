"""vLLM's development routes of its sleep mode, by memoria's own client.

The CPU build moves no memory, but its routes, its pause and its queue are those of every build
(vllm/entrypoints/serve/dev/sleep/api_router.py): what memoria's wakes and sleeps rest on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from memoria.demo import config_path
from memoria.vllm import client
from memoria.vllm.facts import UnixAddress, agree
from memoria.vllm.install.find import data_home, find

pytestmark = pytest.mark.vllm

MODEL = config_path().parent / "models" / "tiny-generation"
FLAGS = (
    "--load-format dummy --distributed-executor-backend uni --enforce-eager --dtype float32 "
    "--max-model-len 2048 --kv-cache-memory-bytes 67108864 --served-model-name tiny"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnixAddress]:
    folder = tmp_path_factory.mktemp("sleep")
    install = find("auto", data_home(os.environ), "cpu")
    address = UnixAddress(str(folder / "engine.sock"))
    environ = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    model = (str(MODEL),) if install.form == "serve" else ("--model", str(MODEL))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*install.command, *model, *FLAGS.split(), "--uds", address.path],
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:

        async def ready() -> None:
            async with asyncio.timeout(120):
                await client.until_answering(address, "generate", "tiny", timeout=5)

        asyncio.run(ready())
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def complete(address: UnixAddress) -> int:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    status, _ = await client.post(address, "/v1/completions", body, timeout=60)
    return status


async def state(address: UnixAddress) -> str:
    metrics = (await client.exposition(address, timeout=5)).decode()
    return next(line for line in metrics.splitlines() if re.match(r"vllm:engine_sleep_state.* 1\.0$", line))


async def test_it_sleeps_queues_and_answers_as_before(engine: UnixAddress) -> None:
    before = await client.sample(engine, "generate", "tiny")
    assert before is not None
    assert await client.fall_asleep(engine, 1) is None
    assert "weights_offloaded" in await state(engine)
    waiting = asyncio.ensure_future(complete(engine))
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    assert await client.wake_up(engine, 1) is None
    assert await waiting == 200
    assert "awake" in await state(engine)
    after = await client.sample(engine, "generate", "tiny")
    assert after is not None
    assert agree(before, after)


async def test_level_2_is_a_query_and_a_failed_reload_leaves_it_asleep(engine: UnixAddress) -> None:
    """A body would be ignored. Random weights cannot be read again; no request gets what is left."""
    assert await client.fall_asleep(engine, 2) is None
    assert "discard_all" in await state(engine)
    failed = await client.wake_up(engine, 2)
    assert failed is not None
    assert failed.startswith("/collective_rpc: status 500, ")
    waiting = asyncio.ensure_future(complete(engine))
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    assert (await client.post(engine, "/wake_up", timeout=30))[0] == 200  # here nothing was lost
    assert await waiting == 200


async def test_what_it_refuses_is_said(engine: UnixAddress) -> None:
    assert "status 4" in (await client.fall_asleep(engine, 7) or "")
    failed = await client._order(engine, "/collective_rpc", {"method": "no_such_method"})
    assert failed is not None
    assert "status 500" in failed
