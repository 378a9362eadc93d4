"""`memoria start`, `stop`, `restart`, `wake` and `sleep`."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal
from urllib.parse import quote

import click

from memoria.cli.client import events, find_daemon, parsing, request
from memoria.cli.options import Options, command, complete_engine
from memoria.cli.screens.layout import facts
from memoria.engine.events import EventKind
from memoria.engine.lifecycle import FACTS, State
from memoria.errors import ExitCode, NotRunningError
from memoria.logs import printable

Action = Literal["start", "stop", "restart", "wake", "sleep"]

GOALS: dict[Action, tuple[State, ...]] = {
    "start": (State.READY,),
    "stop": (State.STOPPED,),
    "restart": (State.READY,),
    "wake": (State.READY,),
    "sleep": (State.ASLEEP, State.DORMANT),
}
WAITS, CALLED_OFF = EventKind.WAITS_FOR_NEIGHBOUR, EventKind.STOP_CALLED_OFF

engine_argument = click.argument("engine", shell_complete=complete_engine)
now_option = click.option("--now", is_flag=True, help="Do not wait for requests in flight.")


@command()
@engine_argument
def start(options: Options, engine: str) -> int:
    """Start an engine that is stopped or has failed, and wait until it is ready.

    Exit code 0: ready, 1: failed, 3: memoria is not running.

    \b
    Example:  memoria start generation
    """
    return control(options, "start", engine)


@command()
@engine_argument
@now_option
def stop(options: Options, engine: str, now: bool) -> int:
    """Stop an engine once its requests in flight are finished. Other engines keep running.

    \b
    Example:  memoria stop generation --now
    """
    return control(options, "stop", engine, now=now)


@command()
@engine_argument
@now_option
def restart(options: Options, engine: str, now: bool) -> int:
    """Stop an engine and start it again. Its requests are queued meanwhile, as far as `hold` allows.

    Exit code 0: ready again, 1: failed, 3: memoria is not running.

    \b
    Example:  memoria restart generation
    """
    return control(options, "restart", engine, now=now)


@command()
@engine_argument
@click.option("--for", "seconds", type=click.IntRange(0), default=0, help="Seconds in which its ttl waits.")
def wake(options: Options, engine: str, seconds: int) -> int:
    """Wake an engine on demand, once there is room, and wait until it is ready.

    Exit code 0: ready, 1: failed, 3: memoria is not running.

    \b
    Example:  memoria wake coder --for 3600
    """
    return control(options, "wake", engine, f"?for={seconds}")


@command()
@engine_argument
def sleep(options: Options, engine: str) -> int:
    """Let an engine on demand finish its requests and give its memory back, until it is needed again.

    Exit code 0: asleep or dormant, 1: new requests kept it awake, 3: memoria is not running.

    \b
    Example:  memoria sleep coder
    """
    return control(options, "sleep", engine)


def control(options: Options, action: Action, engine: str, query: str = "", *, now: bool = False) -> int:
    """Prints a line per state until the engine reaches the goal, or no longer can."""
    socket = find_daemon(options.config).admin_socket
    path = f"/engines/{quote(engine, safe='')}/{action}" + ("?now=true" if now else query)
    accepted = request(socket, path, "POST")
    with parsing(socket):
        before, after = State(accepted["state"]), int(accepted["event"])
    if action != "restart" and before in GOALS[action]:
        unchanged = {"kind": "unchanged", "what": f"is {before} already", "detail": ""}
        _print(engine, unchanged, as_json=options.json)
        return ExitCode.OK
    for kind, entry in events(socket, f"/events?status=false&after={after}"):
        with parsing(socket):
            if kind != "journal" or entry["subject"] != engine:
                continue
            event = entry | {"what": str(entry["what"]), "detail": str(entry["detail"])}
            if entry["kind"] in (WAITS, CALLED_OFF):
                _print(engine, event, as_json=options.json)
            if entry["kind"] == CALLED_OFF and action == "stop":
                return ExitCode.FAILURE
            if entry["kind"] != EventKind.TRANSITION:
                continue
            state = State(entry["data"]["state"])
        if not FACTS[state].brief:
            _print(engine, event, as_json=options.json)
        if (code := outcome(action, state)) is not None:
            return code
    raise NotRunningError("memoria has ended")


def outcome(action: Action, state: State) -> ExitCode | None:
    """None while the action is under way."""
    if state in GOALS[action]:
        return ExitCode.OK
    if FACTS[state].at_rest:  # stopped by another command
        return ExitCode.FAILURE
    if action == "sleep" and state is State.READY:
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
