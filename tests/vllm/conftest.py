"""One daemon with two real vLLM CPU servers for the session, started as a user would: `memoria demo`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.browser.acts import ADMIN, write_keys
from tests.vllm.daemon import RealDaemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    """Needs `memoria setup --cpu`; fails, never skips, where that was not done."""
    folder = tmp_path_factory.mktemp("daemon")
    write_keys(folder / "admins", ana=ADMIN)
    running = RealDaemon(folder, environment={"MEMORIA_ADMIN_KEYS": str(folder / "admins")})
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(daemon: RealDaemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
