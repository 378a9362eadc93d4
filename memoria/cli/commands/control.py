"""`memoria start`, `stop` and `restart`: the wish, then what follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from memoria.cli.client import ask, events, understood
from memoria.cli.commands.running import running
from memoria.engine.lifecycle import CALLED_OFF, WAITS, State
from memoria.errors import ExitCode, NotRunningError
from memoria.logs import printable

Wish = Literal["start", "stop", "restart"]

GOALS: dict[Wish, State] = {"start": State.READY, "stop": State.STOPPED, "restart": State.READY}
# Passed through in an instant, or told by what follows.
UNTOLD = (State.QUEUED, State.RELEASING)
EXPLAINED = (State.BACKOFF, State.FAILED, State.HELD)


def steer(flag: Path | None, wish: Wish, engine: str, *, now: bool = False, as_json: bool = False) -> int:
    """Prints a line for every state until the engine is where it was wished, or will not get there."""
    socket = running(flag).admin_socket
    path = f"/engines/{quote(engine, safe='')}/{wish}" + ("?now=true" if now else "")
    asked = ask(socket, path, "POST")
    with understood(socket):
        before, after = State(asked["state"]), int(asked["event"])
    if wish != "restart" and before is GOALS[wish]:
        _tell(engine, {"what": f"is {before} already", "detail": ""}, as_json=as_json)
        return ExitCode.OK
    for kind, entry in events(socket, f"/events?status=false&after={after}"):
        with understood(socket):
            if kind != "journal" or entry["subject"] != engine:
                continue
            if entry["what"] in (WAITS, CALLED_OFF):
                _tell(engine, entry, as_json=as_json)
            if entry["what"] == CALLED_OFF and wish == "stop":
                return ExitCode.FAILURE
            if entry["what"] not in set(State):
                continue
            state, told = State(entry["what"]), {"what": entry["what"], "detail": str(entry["detail"])}
        if state not in UNTOLD:
            _tell(engine, entry | told, as_json=as_json)
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
        if what == WAITS:
            what, told = "waits", f"until it is its turn: {printable(detail)}"
        sys.stdout.write(f"{engine}  {what:9} {told}".rstrip() + "\n")
    sys.stdout.flush()
