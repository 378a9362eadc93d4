"""A fake vLLM: a real executable with vLLM's process shape, log lines, HTTP answers and failures.

    vllm = StubVllm(tmp_path)
    vllm.set_faults(load_seconds=0.2)                  # for every engine
    vllm.set_faults("generation", fail_at="loading")   # for one, from its next start on
    ... start memoria with `vllm: <vllm.executable>` ...
    vllm.events()                                      # what all stub processes did, in order

tests/integration/test_stub_engine.py holds the stub to what is known of vLLM. `POST /stub/fault` changes the
faults of a running stub (the fields of `Faults`, or {"core_signal": 9}, which is sent to its engine core).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.stub_engine.events import Event, read_events
from tests.stub_engine.faults import EVERY_ENGINE, Faults

__all__ = ["Event", "Faults", "StubVllm"]

_SCRIPT = Path(__file__).with_name("run.py")


class StubVllm:
    """`executable` is called as `vllm serve MODEL ...`. Faults and events are files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._faults = folder / "stub_faults.json"
        self._events = folder / "stub_events.jsonl"
        self._faults.write_text("{}")
        self._events.touch()
        self.executable = folder / "vllm"
        self.executable.write_text(
            "#!/bin/sh\n"
            f"export STUB_FAULTS='{self._faults}' STUB_EVENTS='{self._events}'\n"
            f"exec '{sys.executable}' -S '{_SCRIPT}' \"$@\"\n"
        )
        self.executable.chmod(0o755)

    def set_faults(self, engine: str = EVERY_ENGINE, **faults: Any) -> None:
        """Replaces the faults of an engine's next starts; without faults it is healthy again."""
        known = json.loads(self._faults.read_text())
        known[engine] = asdict(Faults(**faults))
        draft = self._faults.with_suffix(".new")
        draft.write_text(json.dumps(known))
        draft.replace(self._faults)

    def events(self, name: str | None = None, *, engine: str | None = None) -> list[Event]:
        return [
            event
            for event in read_events(self._events)
            if name in (None, event.name) and engine in (None, event.engine)
        ]
