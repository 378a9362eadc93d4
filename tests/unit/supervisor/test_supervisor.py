"""Another deployment for a supervisor whose engines are at rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memoria.config.model import Config, Logging
from memoria.engine.events import Journal
from memoria.plan.plan import make_plan
from memoria.preflight.preflight import Deployment
from memoria.supervisor.runtime_dir import RuntimeDir
from memoria.supervisor.supervisor import Supervisor
from tests.fakes import FakeReader, device
from tests.unit.commands import CONFIG, ENGINE, SERVE
from tests.unit.plans import gpu

OTHER = replace(ENGINE, name="other", port=8102)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(CONFIG, logging=Logging(dir=tmp_path / "logs"), path=tmp_path / "memoria.yaml")


@pytest.fixture
def supervisor(config: Config, tmp_path: Path) -> Iterator[Supervisor]:
    with RuntimeDir(tmp_path / "run") as runtime:
        yield Supervisor(
            deployment(config),
            reader=FakeReader(device()),
            runtime=runtime,
            journal=Journal(),
            environ={},
            plugin_dir=tmp_path,
        )


def deployment(config: Config) -> Deployment:
    return Deployment(config, make_plan(config, {engine.gpu: gpu() for engine in config.engines}), SERVE)


async def test_the_engines_of_a_new_deployment_replace_the_old_ones_at_once(
    supervisor: Supervisor, config: Config
) -> None:
    before, names, kept = supervisor.actors, supervisor.names, supervisor.actors["generation"]
    following = deployment(replace(config, engines=(OTHER, ENGINE)))
    assert supervisor.switch_to(following) == []
    assert list(before) == ["generation"]  # a mapping that was read before is not changed
    assert list(supervisor.actors) == list(names) == ["other", "generation"]
    assert supervisor.actors["generation"] is kept
    assert (supervisor.config, supervisor.plan) == (following.config, following.plan)
    await supervisor.close()


async def test_a_removed_engine_that_returns_while_it_leaves_keeps_its_actor(
    supervisor: Supervisor, config: Config
) -> None:
    await supervisor.open()
    supervisor.switch_to(deployment(replace(config, engines=(ENGINE, OTHER))))
    other = supervisor.actors["other"]
    assert supervisor.switch_to(deployment(config)) == [other]
    retiring = asyncio.create_task(supervisor.retire(other))
    supervisor.switch_to(deployment(replace(config, engines=(ENGINE, OTHER))))
    assert supervisor.actors["other"] is other
    await retiring
    supervisor.start("other", "by the test")  # its actor is still at work
    await supervisor.close()
