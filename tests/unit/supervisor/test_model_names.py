"""Names beyond the file, from engines' own lists of models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from memoria.config.model import Timeouts
from memoria.daemon.engine_router import EngineRouter
from memoria.engine.lifecycle import State
from memoria.engine.snapshot import EngineSnapshot
from memoria.proxy.router import Candidate
from memoria.supervisor.model_names import ModelNames
from memoria.vllm.facts import UnixAddress
from tests.fakes import until


class Engines:
    """Ready engines that list models, and how often they were read."""

    def __init__(self) -> None:
        self.models: dict[str, list[Any]] = {"a": ["base"], "b": ["code"]}
        self.reads = 0
        self.actors: dict[str, Any] = {}
        self.config = SimpleNamespace(timeouts=Timeouts())

    def snapshot(self, name: str, state: State) -> EngineSnapshot:
        address = UnixAddress(f"{self.folder}/{name}.sock")
        made = EngineSnapshot(name, state, since=time.time(), address=address)
        self.actors[name] = SimpleNamespace(snapshot=made)
        return made

    async def serve(self, folder: Path) -> list[web.AppRunner]:
        self.folder, runners = folder, []
        for name in self.models:
            app = web.Application()
            app.router.add_get("/v1/models", self._answer(name))
            runner = web.AppRunner(app)
            await runner.setup()
            self.snapshot(name, State.READY)
            await web.UnixSite(runner, f"{folder}/{name}.sock").start()
            runners.append(runner)
        return runners

    def _answer(self, name: str) -> Any:
        async def models(_: web.Request) -> web.Response:
            self.reads += 1
            return web.json_response({"data": [{"id": model} for model in self.models[name]]})

        return models


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    made = Engines()
    runners = await made.serve(tmp_path)
    yield made
    for runner in runners:
        await runner.cleanup()


def names_of(engines: Engines, *, interval: float = 0.0) -> ModelNames:
    return ModelNames(engines, interval=interval)  # type: ignore[arg-type]


async def test_an_engine_that_gets_ready_is_looked_at_and_forgotten_at_its_end(engines: Engines) -> None:
    names = names_of(engines)
    engines.models["a"] = ["base", "sql-lora", 5]
    names.on_engine(engines.snapshot("a", State.READY))
    await until(lambda: names.of("a") == ("base", "sql-lora"))
    assert names.of("b") == ()
    names.on_engine(engines.snapshot("a", State.RELEASING))
    assert names.of("a") == ()


async def test_one_look_serves_all_and_is_not_repeated_at_once(engines: Engines) -> None:
    names, done = names_of(engines, interval=60), asyncio.Event()
    engines.models["b"].append("style")
    assert names.look(done.set)
    assert names.look(lambda: None)
    await done.wait()
    assert (names.of("b"), engines.reads) == (("code", "style"), 2)
    assert not names.look(done.set)


async def test_an_engine_that_does_not_answer_keeps_its_names(engines: Engines) -> None:
    names = names_of(engines)
    await names.learn("a")
    engines.models["a"] = []
    engines.actors["a"].snapshot = engines.snapshot("a", State.STARTING)
    await names.learn("a")
    await names.learn("gone")
    assert names.of("a") == ("base",)


async def test_a_found_name_is_a_candidates_unless_the_file_gives_it_to_another(engines: Engines) -> None:
    names = names_of(engines)
    configured = {("generate", 8200): (Candidate("a", ("base",)), Candidate("b", ("code",)))}
    router = EngineRouter(engines, lambda: configured, names)  # type: ignore[arg-type, return-value]
    assert router.candidates("generate", 8200) == configured["generate", 8200]
    engines.models["a"] = ["base", "sql", "code"]
    await names.learn("a")
    found = router.candidates("generate", 8200)
    assert found == (Candidate("a", ("base", "sql")), Candidate("b", ("code",)))
    assert router.candidates("generate", 8200) is found
