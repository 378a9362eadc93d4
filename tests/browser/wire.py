"""A network between the browser and the daemon that can fall silent without closing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Wire:
    """`port` is what the browser asks. After `fall_silent` the connections that are there take bytes and pass
    none on; those that are made later are well."""

    def __init__(self, to: int) -> None:
        self.port, self._to = 0, to
        self._silences = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def fall_silent(self) -> None:
        self._silences += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        daemon_reader, daemon_writer = await asyncio.open_connection("127.0.0.1", self._to)
        for source, target in ((reader, daemon_writer), (daemon_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, target, self._silences))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, silences: int
    ) -> None:
        try:
            while piece := await source.read(65536):
                if silences == self._silences:
                    target.write(piece)
                    await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def wire(to: int) -> AsyncIterator[Wire]:
    line = Wire(to)
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        await line.close()
