"""The stub engine against what is known of vLLM: nobody should believe a test that runs on a wrong stub."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from memoria.vllm.diagnosis import diagnose
from memoria.vllm.facts import ExitStatus
from memoria.vllm.log_lines import Phase, StartFigures, read_line
from memoria.vllm.passenger import PLUGIN_DIR
from tests.stub_engine import StubVllm
from tests.stub_engine.device import held
from tests.stub_engine.process import StartStub, alive, eventually, requests_running, status_of
from tests.stub_nvml import NvmlStub, StubGpu
from tests.unit.commands import ENGINE, START, spec


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with a plugin that writes down its process and holds the engine core until
    somebody writes to the pipe beside it."""
    folder = tmp_path / "plugin"
    (folder / "probe-1.dist-info").mkdir(parents=True)
    (folder / "probe-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    (folder / "probe-1.dist-info/entry_points.txt").write_text(
        "[vllm.general_plugins]\nprobe = probe:register\n"
    )
    (folder / "probe.py").write_text(
        "import multiprocessing, os\n"
        "def register():\n"
        "    name = multiprocessing.current_process().name\n"
        "    with open(os.path.dirname(__file__) + '/seen', 'a') as seen:\n"
        "        seen.write(name + '\\n')\n"
        "    if name == 'EngineCore':\n"
        "        open(os.path.dirname(__file__) + '/pass').read()\n"
    )
    os.mkfifo(folder / "pass")
    return folder


# ---------------------------------------------------------------------- starting


async def test_it_starts_in_vllms_own_words(start_stub: StartStub) -> None:
    process = await start_stub("--max-model-len", "1024").ready()
    seen = [observation for line in process.log() if (observation := read_line(line))]
    figures = StartFigures()
    for observation in seen:
        figures = figures.with_observation(observation)
    assert list(dict.fromkeys(observation.phase for observation in seen)) == [
        Phase.IMPORTED,
        Phase.CONFIGURED,
        Phase.ENGINE,
        Phase.LOADING,
        Phase.PROFILING,
        Phase.WARMING_UP,
        Phase.LISTENING,
    ]
    assert [observation.percent for observation in seen if observation.percent] == [50, 100]
    assert (figures.weights_gib, figures.kv_gib, figures.max_model_len) == (1.19, 4.0, 1024)


async def test_plugins_are_loaded_in_both_processes_and_hold_the_core_before_the_device(
    start_stub: StartStub, plugin: Path
) -> None:
    process = start_stub(env={"PYTHONPATH": str(plugin)})
    seen = plugin / "seen"
    await eventually(lambda: seen.exists() and "EngineCore" in seen.read_text())
    assert seen.read_text().split() == ["MainProcess", "EngineCore"]
    assert not [line for line in process.log() if "Initializing a V1 LLM engine" in line]
    await asyncio.to_thread((plugin / "pass").write_text, "go")
    await process.ready()


async def test_restricted_plugins_are_left_out(start_stub: StartStub, plugin: Path) -> None:
    await start_stub(env={"PYTHONPATH": str(plugin), "VLLM_PLUGINS": "other"}).ready()
    assert not (plugin / "seen").exists()


async def test_memorias_passenger_rides_in_both_processes(start_stub: StartStub, tmp_path: Path) -> None:
    hellos: list[str] = []
    at_gate = asyncio.Event()

    async def supervise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await reader.readline())
            hellos.append(hello["hello"])
            if hello["hello"] == "engine_core":
                at_gate.set()
                await let_through.wait()
                writer.write(b'{"go": true}\n')
            await reader.read()
        finally:  # the loop may end first
            writer.close()

    let_through = asyncio.Event()
    gate = await asyncio.start_unix_server(supervise, tmp_path / "gate")
    facts = replace(
        START, gate_path=str(tmp_path / "gate"), supervisor_pid=os.getpid(), plugin_dir=str(PLUGIN_DIR)
    )
    process = start_stub(env=dict(spec(start=facts).env))
    await at_gate.wait()
    assert hellos == ["api_server", "engine_core"]
    assert not [line for line in process.log() if "Initializing a V1 LLM engine" in line]
    let_through.set()
    await process.ready()
    core = process.core
    os.kill(process.pid, signal.SIGKILL)
    await eventually(lambda: not alive(core))
    gate.close()


async def test_memorias_own_command_line_is_understood(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    args = {"max_num_seqs": 8, "enforce_eager": True, "pooler_config": {"pooling_type": "LAST"}}
    argv = spec(args, engine=replace(ENGINE, runner="pooling")).argv
    options = list(argv[argv.index("--runner") :])
    uds = options.index("--uds")
    process = await start_stub(*options[:uds], *options[uds + 2 :]).ready()
    async with process.http() as http, http.get("/v1/models") as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == list(ENGINE.served_model_name)


async def test_an_unknown_flag_ends_with_2(start_stub: StartStub) -> None:
    process = start_stub("--max-num-seq-count", "3")
    code = await process.exit_code()
    assert code == 2
    assert "--max-num-seq-count" in diagnose(process.log(), ExitStatus(code=code)).cause


async def test_a_socket_that_is_there_already_ends_with_1(start_stub: StartStub, tmp_path: Path) -> None:
    (tmp_path / "stub.sock").touch()
    process = start_stub()
    assert await process.exit_code() == 1
    assert "port or socket" in diagnose(process.log(), ExitStatus(code=1)).cause


async def test_the_socket_is_there_before_anybody_listens(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(hang_at="loading")
    process = start_stub()
    await process.until("through the gate")
    assert process.socket.exists()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_unix_connection(process.socket)


async def test_a_core_that_fails_takes_its_api_server_with_it(
    stub_vllm: StubVllm, start_stub: StartStub
) -> None:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"
    stub_vllm.set_faults(fail_at="loading", log=(error,))
    process = start_stub()
    assert await process.exit_code() == 1
    assert "Engine core initialization failed" in process.log()[-1]
    assert diagnose(process.log(), ExitStatus(code=1)).cause.startswith("CUDA out of memory: 2.50 GiB")


async def test_a_core_ended_by_a_signal_is_reported(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(fail_at="warming_up", exit_code=-signal.SIGILL, log=())
    process = start_stub()
    assert await process.exit_code() == 1
    assert "SIGILL" in diagnose(process.log(), ExitStatus(code=1)).cause


async def test_faults_belong_to_one_engine(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults("generation", fail_at="importing", exit_code=7)
    assert await start_stub(env={"MEMORIA_ENGINE": "generation"}).exit_code() == 7
    await start_stub(env={"MEMORIA_ENGINE": "embedding"}).ready()


# ---------------------------------------------------------------------- ending


async def test_sigterm_ends_a_ready_server_with_0_and_its_core_too(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    os.kill(process.pid, signal.SIGTERM)
    assert await process.exit_code() == 0
    assert not alive(process.core)


async def test_sigterm_is_swallowed_while_the_engine_starts(
    stub_vllm: StubVllm, start_stub: StartStub
) -> None:
    stub_vllm.set_faults(load_seconds=0.5)
    process = start_stub()
    await process.until("core spawned")
    os.killpg(process.pid, signal.SIGTERM)
    await process.until("sigterm")
    await process.ready()


async def test_sigterm_gives_streams_an_error_and_a_done(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(token_seconds=0.05)
    process = await start_stub().ready()
    ask = {"prompt": "a", "max_tokens": 1000, "stream": True}
    async with process.http() as http, http.post("/v1/completions", json=ask) as answer:
        await answer.content.readline()
        os.kill(process.pid, signal.SIGTERM)
        rest = await answer.content.read()
    assert b'"InternalServerError"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_sigterm_can_be_ignored(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(ignore_sigterm=True)
    process = await start_stub().ready()
    os.kill(process.pid, signal.SIGTERM)
    assert (await process.until("sigterm")).detail == "ignored"
    async with process.http() as http, http.get("/health") as answer:
        assert answer.status == 200


async def test_a_killed_api_server_leaves_an_orphan(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    core = process.core
    os.kill(process.pid, signal.SIGKILL)
    assert await process.exit_code() == -signal.SIGKILL
    os.kill(core, signal.SIGTERM)
    assert alive(core)
    assert os.getpgid(core) == process.pid


async def test_a_killed_core_in_an_idle_server_ends_it_with_0(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    os.kill(process.core, signal.SIGKILL)
    async with process.http() as http:
        while True:
            async with http.get("/health") as answer:
                if answer.status == 503:
                    break
    assert await process.exit_code() == 0
    assert "engine core died" in diagnose(process.log(), ExitStatus(code=0)).cause


async def test_a_killed_core_gives_streams_an_error_and_a_done(
    stub_vllm: StubVllm, start_stub: StartStub
) -> None:
    stub_vllm.set_faults(token_seconds=0.05)
    process = await start_stub().ready()
    ask = {"prompt": "a", "max_tokens": 1000, "stream": True}
    async with process.http() as http, http.post("/v1/completions", json=ask) as answer:
        await answer.content.readline()
        os.kill(process.core, signal.SIGKILL)
        rest = await answer.content.read()
    assert b"EngineCore encountered an issue" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert await process.exit_code() == 0


async def test_a_killed_core_fails_whole_answers_with_500(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(token_seconds=0.05)
    process = await start_stub().ready()
    async with process.http() as http:
        waiting = asyncio.ensure_future(
            status_of(http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1000}))
        )
        await requests_running(process, 1)
        os.kill(process.core, signal.SIGKILL)
        assert await waiting == 500


async def test_a_frozen_core_is_healthy_and_answers_nothing(start_stub: StartStub) -> None:
    process = await start_stub().ready()
    await process.fault(core_signal=signal.SIGSTOP)
    async with process.http() as http:
        waiting = asyncio.ensure_future(status_of(http.post("/v1/completions", json={"prompt": "a"})))
        await requests_running(process, 1)
        async with http.get("/health") as answer:
            assert answer.status == 200
        assert not waiting.done()
        os.kill(process.core, signal.SIGCONT)
        assert await waiting == 200


async def test_a_grandchild_can_outlive_everything(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(grandchild=True)
    process = start_stub()
    grandchild = (await process.until("grandchild")).pid
    await process.ready()
    os.killpg(process.pid, signal.SIGKILL)
    await process.exit_code()
    assert alive(grandchild)
    assert os.getsid(grandchild) != process.pid


async def test_an_api_server_can_vanish_in_the_middle_of_an_answer(
    stub_vllm: StubVllm, start_stub: StartStub
) -> None:
    stub_vllm.set_faults(vanish_after_tokens=3)
    process = await start_stub().ready()
    async with (
        process.http() as http,
        http.post("/v1/completions", json={"prompt": "a", "stream": True}) as answer,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    assert await process.exit_code() == 1


async def test_noise_goes_to_the_log(stub_vllm: StubVllm, start_stub: StartStub) -> None:
    stub_vllm.set_faults(stderr_bytes_per_second=1_000_000)
    process = await start_stub().ready()
    await eventually(lambda: process.log_path.stat().st_size > 100_000)


async def test_gpu_memory_is_taken_behind_the_gate_and_given_back_at_the_end(
    stub_vllm: StubVllm, start_stub: StartStub, nvml_stub: NvmlStub
) -> None:
    nvml_stub.set(gpus=[StubGpu(total=1000, used=100)])
    stub_vllm.set_faults(gpu_bytes=300)
    path = nvml_stub.env()["NVML_STUB_FILE"]

    process = await start_stub(env={"NVML_STUB_FILE": path}).ready()
    assert held(Path(path)) == 300
    os.kill(process.pid, signal.SIGTERM)
    await process.exit_code()
    assert held(Path(path)) == 0
