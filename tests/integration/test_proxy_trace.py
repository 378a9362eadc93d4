"""One streamed request, traced: how much of the proxy a reader has to follow.

Cold: the first request of the first connection, with access rules, as in the daemon.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import memoria.proxy
from memoria.proxy.access.rules import AccessRules
from tests.integration.proxy_rig import Asked, Rig, Script, ScriptedEngine, on_uvloop, until

FILES, CALLS, CALLS_PER_EVENT = 8, 60, 2
FOLDER = str(Path(memoria.proxy.__file__).parent) + "/"

BODY = b'{"model":"generation","messages":[{"role":"user","content":"Hello"}],"stream":true}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'f\r\ndata: {"n":0}\n\n\r\n'
LAST = b"0\r\n\r\n"


def streaming(events: int) -> Script:
    async def stream(asked: Asked) -> None:
        await asked.read_body()
        for data in (HEAD, *[EVENT] * events, LAST):
            await asked.send(data)
            await asyncio.sleep(0.01)  # as tokens come: a read each

    return stream


@contextmanager
def traced(calls: list[tuple[str, str]]) -> Iterator[None]:
    """Adds file and name of every function of memoria/proxy/ that is called meanwhile."""

    def record(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDER):
            calls.append((code.co_filename.removeprefix(FOLDER), code.co_qualname))

    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(None)


async def calls_of(folder: Path, events: int) -> list[tuple[str, str]]:
    rules = AccessRules(frozenset((b"test",)))
    async with Rig(folder, rules=rules, generation=ScriptedEngine(streaming(events))) as rig:
        client = await rig.client()
        await until(lambda: len(rig.connections) == 1)
        calls: list[tuple[str, str]] = []
        with traced(calls):
            await client.post(b"/v1/chat/completions", BODY, b"content-type: application/json")
            response = await client.response()
        assert response.status == 200
        assert response.ended
        assert response.body.count(b"data: ") == events
    return calls


@on_uvloop
async def test_a_streamed_request_passes_few_files_and_calls(tmp_path: Path) -> None:
    calls = await calls_of(tmp_path, 1)
    files = Counter(file for file, _ in calls)
    table = "\n".join(f"{count:4} {file}" for file, count in files.most_common())
    steps = "\n".join(f"     {file} {name}" for file, name in calls)
    report = f"{len(files)} files (at most {FILES}), {len(calls)} calls (at most {CALLS}):\n{table}\n{steps}"
    assert len(files) <= FILES, report
    assert len(calls) <= CALLS, report
    more = await calls_of(tmp_path, 11)
    assert len(more) - len(calls) == 10 * CALLS_PER_EVENT
