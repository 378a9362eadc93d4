"""One stub engine started by a test itself, without memoria."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from tests.stub_engine import Event, StubVllm


class StubProcess:
    """In a session of its own, listening on `socket`. `kill` leaves nothing behind."""

    def __init__(
        self, vllm: StubVllm, folder: Path, argv: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.vllm, self.socket, self.log_path = vllm, folder / "stub.sock", folder / "stub.log"
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [vllm.executable, "serve", "tiny", "--uds", self.socket, *argv],
                env={"PATH": os.environ["PATH"], **(env or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    async def until(self, event: str) -> Event:
        """Waits for an event of one of the stub's processes."""
        await eventually(lambda: bool(self.vllm.events(event)))
        return self.vllm.events(event)[0]

    async def ready(self) -> StubProcess:
        await self.until("ready")
        return self

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self._process.wait)

    def log(self) -> list[str]:
        return self.log_path.read_text().replace("\r", "\n").splitlines()

    @property
    def core(self) -> int:
        return self.vllm.events("core spawned")[0].pid

    def http(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession("http://stub", connector=aiohttp.UnixConnector(str(self.socket)))

    async def fault(self, **change: object) -> None:
        async with self.http() as http, http.post("/stub/fault", json=change) as answer:
            assert answer.status == 200

    def kill(self) -> None:
        for pid in {self.pid, *(event.pid for event in self.vllm.events())}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class StartStub(Protocol):
    """The fixture `start_stub`."""

    def __call__(self, *argv: str, env: Mapping[str, str] | None = None) -> StubProcess: ...


async def eventually(holds: Callable[[], bool]) -> None:
    """For what only other processes can tell; a test that waits in vain ends by the timeout."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (another process sets no event here)
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


Answering = contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]


async def status_of(request: Answering) -> int:
    async with request as answer:
        return answer.status


async def body_of(request: Answering) -> dict[str, Any]:
    async with request as answer:
        assert answer.status == 200
        body: dict[str, Any] = await answer.json()
        return body


async def requests_running(process: StubProcess, count: int) -> None:
    """Waits until the server has that many requests in flight."""
    async with process.http() as http:
        while True:
            async with http.get("/metrics") as answer:
                if (
                    f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {count}.0\n'
                    in await answer.text()
                ):
                    return
