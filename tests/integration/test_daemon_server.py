"""A daemon whose HTTP server falls over: it must not look as if it had been asked to stop."""

from __future__ import annotations

from tests.integration.daemon import ROOT, Box

FALLS_OVER = """
import asyncio, os
import memoria.daemon.server

async def main_loop(self):
    while not os.path.exists(os.environ["FALL_OVER"]):
        await asyncio.sleep(0.01)
    raise RuntimeError("the server fell over")

memoria.daemon.server.Server.main_loop = main_loop
"""


def test_the_end_of_the_http_server_ends_the_daemon_with_an_error(box: Box) -> None:
    box.configure()
    patch, sign = box.folder / "patch", box.folder / "now"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(FALLS_OVER)
    daemon = box.start(PYTHONPATH=f"{patch}:{ROOT}", FALL_OVER=str(sign))
    daemon.until_ready()
    sign.touch()
    daemon.told("memoria", "server_ended")
    assert daemon.exit_code() == 1
    assert box.survivors() == []
