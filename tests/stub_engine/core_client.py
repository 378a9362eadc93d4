"""The API server's side of the engine core."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from multiprocessing import get_context

from tests.stub_engine.core import run_engine_core
from tests.stub_engine.faults import Faults


class EngineDeadError(Exception):
    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class CoreClient:
    def __init__(self, model: str, max_model_len: int, fraction: float | None, faults: Faults) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=run_engine_core, args=(theirs, model, max_model_len, fraction, faults), name="EngineCore"
        )
        self._process.start()
        theirs.close()
        self._keys = itertools.count()
        self._tokens: dict[int, asyncio.Queue[bool]] = {}  # False: the core is dead
        self.ready = asyncio.Event()
        self.dead = asyncio.Event()
        self.tokens_made = 0
        self._blocks: Counter[int] = Counter()  # what each request has in the KV cache
        self.died_busy = False
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._read)
        loop.add_reader(self._process.sentinel, self._died)

    @property
    def requests_running(self) -> int:
        return len(self._tokens)

    @property
    def blocks_in_cache(self) -> int:
        """As the core reports it: a frozen one reports nothing new."""
        return self._blocks.total()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    async def generate(self, tokens: int, seconds: float, chunks: int = 0) -> AsyncIterator[int]:
        """The numbers of the tokens, as the core makes them, after so many chunks of the prompt. Raises
        `EngineDeadError`. Closing it aborts."""
        if self.dead.is_set():
            raise EngineDeadError
        key = next(self._keys)
        queue = self._tokens[key] = asyncio.Queue()
        self._pipe.send(("generate", key, chunks, tokens, seconds))
        try:
            for number in range(tokens):
                if not await queue.get():
                    raise EngineDeadError
                self.tokens_made += 1
                yield number
        finally:
            del self._tokens[key]
            del self._blocks[key]
            with contextlib.suppress(OSError):
                self._pipe.send(("abort", key))

    def signal(self, number: int) -> None:
        if self._process.pid is not None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._died()

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                match self._pipe.recv():
                    case "ready":
                        self.ready.set()
                    case (key, is_token) if key in self._tokens:
                        if is_token:
                            self._tokens[key].put_nowait(True)
                        self._blocks[key] += not is_token or not self._blocks[key]  # tokens fill one alone
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    def _died(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._process.sentinel)
        loop.remove_reader(self._pipe.fileno())
        self._process.join()
        self.died_busy = bool(self._tokens)
        self.dead.set()
        for queue in self._tokens.values():
            queue.put_nowait(False)
