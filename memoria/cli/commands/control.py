"""`memoria start`, `stop` and `restart`: the request, then what follows from it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from memoria.cli.client import ask, events, understood
from memoria.cli.commands.running import running
from memoria.cli.screens.layout import facts
from memoria.engine.events import EventKind
from memoria.engine.lifecycle import FACTS, State
from memoria.errors import ExitCode, NotRunningError
from memoria.logs import printable

Wish = Literal["start", "stop", "restart"]

GOALS: dict[Wish, State] = {"start": State.READY, "stop": State.STOPPED, "restart": State.READY}
WAITS, CALLED_OFF = EventKind.WAITS_FOR_NEIGHBOUR, EventKind.STOP_CALLED_OFF


def steer(flag: Path | None, wish: Wish, engine: str, *, now: bool = False, as_json: bool = False) -> int:
    """Requests it, then prints a line for every state until the engine is there, or will not get there."""
    socket = running(flag).admin_socket
    path = f"/engines/{quote(engine, safe='')}/{wish}" + ("?now=true" if now else "")
    asked = ask(socket, path, "POST")
    with understood(socket):
        before, after = State(asked["state"]), int(asked["event"])
    if wish != "restart" and before is GOALS[wish]:
        _print(engine, {"kind": "unchanged", "what": f"is {before} already", "detail": ""}, as_json=as_json)
        return ExitCode.OK
    for kind, entry in events(socket, f"/events?status=false&after={after}"):
        with understood(socket):
            if kind != "journal" or entry["subject"] != engine:
                continue
            event = entry | {"what": str(entry["what"]), "detail": str(entry["detail"])}
            if entry["kind"] in (WAITS, CALLED_OFF):
                _print(engine, event, as_json=as_json)
            if entry["kind"] == CALLED_OFF and wish == "stop":
                return ExitCode.FAILURE
            if entry["kind"] != EventKind.TRANSITION:
                continue
            state = State(entry["data"]["state"])
        if not FACTS[state].brief:
            _print(engine, event, as_json=as_json)
        if (code := outcome(wish, state)) is not None:
            return code
    raise NotRunningError("memoria has ended")


def outcome(wish: Wish, state: State) -> ExitCode | None:
    """None while it is under way."""
    if state is GOALS[wish]:
        return ExitCode.OK
    if FACTS[state].at_rest:  # or a later request says otherwise
        return ExitCode.FAILURE
    return None


def _print(engine: str, event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"engine": engine, **event}) + "\n")
    else:
        what, detail = event["what"], printable(event["detail"])
        if event["kind"] == EventKind.TRANSITION:
            text = f"{what:9} {detail}" if facts(what).explained else what
        else:
            text = f"{what}: {detail}" if detail else what
        sys.stdout.write(f"{engine}  {text.rstrip()}\n")
    sys.stdout.flush()
