"""`memoria start`, `stop` and `restart`: the wish, then what follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from memoria.cli.client import ask, events
from memoria.cli.running import admin_socket, check_engine, running_config
from memoria.engine.lifecycle import State
from memoria.errors import ExitCode, NotRunningError
from memoria.logs import printable

Wish = Literal["start", "stop", "restart"]

GOALS: dict[Wish, State] = {"start": State.READY, "stop": State.STOPPED, "restart": State.READY}
# Passed through in an instant, or told by what follows.
UNTOLD = (State.QUEUED, State.RELEASING)
EXPLAINED = (State.BACKOFF, State.FAILED, State.HELD)


def steer(flag: Path | None, wish: Wish, engine: str, *, now: bool = False, as_json: bool = False) -> int:
    """Prints a line for every state until the engine is where it was wished, or will not get there."""
    config = running_config(flag)
    check_engine(config, engine)
    socket = admin_socket(config)
    asked = ask(socket, f"/engines/{engine}/{wish}" + ("?now=true" if now else ""), "POST")
    if wish != "restart" and asked["state"] == GOALS[wish]:
        _tell(engine, {"what": f"is {asked['state']} already", "detail": ""}, as_json=as_json)
        return ExitCode.OK
    for _, entry in events(socket, f"/events?status=false&after={asked['event']}"):
        if entry["subject"] != engine or entry["what"] not in set(State):
            continue
        state = State(entry["what"])
        if state not in UNTOLD:
            _tell(engine, entry, as_json=as_json)
        if (code := outcome(wish, state)) is not None:
            return code
    raise NotRunningError("memoria has ended")


def outcome(wish: Wish, state: State) -> ExitCode | None:
    """None: it is still under way."""
    if state is GOALS[wish]:
        return ExitCode.OK
    if state in (State.FAILED, State.STOPPED):  # or somebody else wished otherwise
        return ExitCode.FAILURE
    return None


def _tell(engine: str, entry: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"engine": engine, **entry}) + "\n")
    else:
        what, detail = entry["what"], entry["detail"]
        told = printable(detail) if what in EXPLAINED else ""
        sys.stdout.write(f"{engine}  {what:9} {told}".rstrip() + "\n")
    sys.stdout.flush()
