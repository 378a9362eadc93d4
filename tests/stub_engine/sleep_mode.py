"""vLLM's sleep mode, with its development routes (vllm/entrypoints/serve/dev/sleep/api_router.py, 0.32)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs

from tests.stub_engine import answers
from tests.stub_engine.device import held_by, set_memory
from tests.stub_engine.events import record
from tests.stub_engine.faults import Faults
from tests.stub_engine.http_server import Request, Response

ROUTES = {
    "/sleep": "POST",
    "/wake_up": "POST",
    "/collective_rpc": "POST",
    "/is_sleeping": "GET",
    "/reset_prefix_cache": "POST",
    "/reset_mm_cache": "POST",
    "/reset_encoder_cache": "POST",
    "/release_kv_cache_memory": "POST",
    "/server_info": "GET",
}
TAGS = frozenset({"weights", "kv_cache"})


class SleepMode:
    """`moves_memory`: with --enable-sleep-mode. Requests wait while it sleeps. `core`: its process id."""

    def __init__(self, core: int, faults: Callable[[], Faults], *, moves_memory: bool) -> None:
        self._core, self._faults, self._moves_memory = core, faults, moves_memory
        self._asleep: set[str] = set()
        self._awake_bytes = 0
        self._weights_lost = False
        self.is_wrong = False  # what it computes
        self.awake = asyncio.Event()
        self.awake.set()

    async def answer(self, request: Request) -> Response:
        try:
            match request.path:
                case "/sleep":
                    level = int(parse_qs(request.query).get("level", ["1"])[0])
                    await self._sleep(level)
                    return Response.of_json({"status": "sleeping", "level": level})
                case "/wake_up":
                    tags = parse_qs(request.query).get("tags")
                    await self._wake(set(tags or TAGS))
                    return Response.of_json({"status": "sleeping" if self._asleep else "awake", "tags": tags})
                case "/is_sleeping":
                    return Response.of_json({"is_sleeping": not self.awake.is_set()})
                case "/collective_rpc":
                    return self._reload(str(request.json()["method"]))
                case _:
                    return Response()
        except MemoryError as error:
            return Response.of_json(answers.error(str(error), "InternalServerError", 500), 500)

    async def _sleep(self, level: int) -> None:
        record("sleep", level)
        self.awake.clear()
        if self._asleep:
            return  # "Executor is already sleeping."
        await self._pause(self._faults().sleep_hangs)
        if self._moves_memory:
            self._awake_bytes = held_by(self._core)
            set_memory(self._core, min(self._awake_bytes, self._faults().asleep_bytes))
        if self._faults().sleep_fails:  # after it has freed its memory, as the real assertion does
            raise MemoryError("Call to sleep method failed: Memory usage increased after sleeping.")
        self._weights_lost = level == 2
        self._asleep = set(TAGS)

    async def _wake(self, tags: set[str]) -> None:
        record("wake", ",".join(sorted(tags)))
        await self._pause(self._faults().wake_hangs)
        if self._moves_memory and self._asleep:
            if (room := self._faults().wake_takes_only) is not None:
                set_memory(self._core, room)
                raise MemoryError("Call to wake_up method failed: CUDA Error: out of memory")
            set_memory(self._core, self._awake_bytes if tags == self._asleep else self._awake_bytes // 2)
        self._asleep -= tags
        if not self._asleep:
            self.is_wrong = self._weights_lost or self._faults().wrong_after_wake
            self.awake.set()

    def _reload(self, method: str) -> Response:
        record("rpc", method)
        if self._faults().reload_fails:
            raise MemoryError("Call to collective_rpc method failed: reload_weights")
        self._weights_lost = False
        return Response.of_json({"results": [None]})

    async def _pause(self, hangs: bool) -> None:
        if hangs:
            await asyncio.Event().wait()
