"""The socket that the passengers connect to: memoria's plugin in every vLLM process.

Each process sends one line, `{"hello": role, "pid": ..., "engine": ..., "start": ...}`, and keeps the
connection for life. An engine core then waits for `{"go": true}`. The socket is in the 0700 runtime
directory: only the daemon's own user can connect.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

LONGEST_HELLO = 4096  # bytes


class CoreConnections:
    """The passengers of one start. `seen` is set by the first hello, `at_gate` by an engine core's. `on_lost`
    is called when a core that passed the gate has ended."""

    def __init__(self) -> None:
        self.seen = asyncio.Event()
        self.at_gate = asyncio.Event()
        self.on_lost: Callable[[], None] | None = None
        self._cores: list[asyncio.StreamWriter] = []
        self._let_through = False

    def let_through(self) -> None:
        self._let_through = True
        for core in self._cores:
            _send(core, {"go": True})

    def ask_for_stacks(self) -> None:
        """Makes every engine core write the stacks of its threads to the engine's log."""
        for core in self._cores:
            _send(core, {"dump": True})

    def add_process(self, role: str, writer: asyncio.StreamWriter) -> None:
        self.seen.set()
        if role == "engine_core":
            self._cores.append(writer)
            if self._let_through:
                _send(writer, {"go": True})
            self.at_gate.set()

    def remove_process(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._cores:
            self._cores.remove(writer)
            if self._let_through and self.on_lost is not None:
                self.on_lost()


class Passengers:
    """Listens on `path`, a Unix socket; the connection of an unknown start is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: dict[str, CoreConnections] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=LONGEST_HELLO)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._open):
                writer.close()
            await self._server.wait_closed()
            self.path.unlink(missing_ok=True)

    def expect(self, start_id: str) -> CoreConnections:
        return self._starts.setdefault(start_id, CoreConnections())

    def forget(self, start_id: str) -> None:
        self._starts.pop(start_id, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        start: CoreConnections | None = None
        try:
            hello = json.loads(await reader.readline())
            start = self._starts[hello["start"]]
            logger.debug(
                "%s: passenger %s connected, pid %s", hello.get("engine"), hello["hello"], hello.get("pid")
            )
            start.add_process(hello["hello"], writer)
            while await reader.read(LONGEST_HELLO):  # until it ends: nothing more is sent
                pass
        except ConnectionError as error:  # killed while a message was under way
            logger.debug("a passenger is gone: %r", error)
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("a passenger was refused: %r", error)
        finally:
            if start is not None:
                start.remove_process(writer)
            self._open.discard(writer)
            writer.close()


def _send(writer: asyncio.StreamWriter, message: dict[str, bool]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")
