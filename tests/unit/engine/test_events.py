"""What happened, in order, and its words."""

from __future__ import annotations

import ast
import json
import string
from pathlib import Path

import pytest

import memoria
from memoria.admin.api import openapi
from memoria.engine.events import WORDS, Entry, EventKind, Journal
from memoria.engine.lifecycle import FACTS, State, Tone

KINDS = (EventKind.STOPPING, EventKind.STOPPING_NOW, EventKind.RELOADED, EventKind.HANDED_OVER)
SOURCES = Path(memoria.__file__).parent


def test_entries_are_kept_in_order_and_bounded() -> None:
    journal = Journal(size=2)
    for kind in KINDS[:3]:
        journal.add_event(kind, "memoria")
    assert [entry.kind for entry in journal.entries()] == list(KINDS[1:3])
    before, after = journal.entries()
    assert before.monotonic <= after.monotonic


def test_listeners_hear_every_entry() -> None:
    journal, heard = Journal(), list[Entry]()
    journal.listen(heard.append)
    journal.add_event(EventKind.RELOADED, "memoria", "keys")
    assert heard == list(journal.entries())


def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Entry) -> None:
        raise RuntimeError("a bug in a screen")

    journal, heard = Journal(), list[Entry]()
    journal.listen(fail)
    journal.listen(heard.append)
    journal.add_event(EventKind.STOPPING, "memoria")
    assert len(heard) == 1
    assert "a bug in a screen" in caplog.text


def test_the_entries_after_a_number() -> None:
    journal = Journal(size=3)
    for kind in KINDS:
        journal.add_event(kind, "memoria")
    assert [entry.kind for entry in journal.after(3)] == list(KINDS[3:])
    assert [entry.kind for entry in journal.after(0)] == list(KINDS[1:])
    assert journal.after(4) == journal.after(99) == ()
    assert [entry.number for entry in journal.entries()] == [2, 3, 4]


def test_every_kind_but_a_transition_has_words() -> None:
    assert {*WORDS, EventKind.TRANSITION} == set(EventKind)
    assert len({words.what for words in WORDS.values()}) == len(WORDS)


def test_the_description_of_the_api_lists_every_kind_and_tone() -> None:
    schemas = json.loads(openapi.document())["components"]["schemas"]
    assert schemas["EventKind"]["enum"] == list(EventKind)
    assert schemas["Tone"]["enum"] == list(Tone)


def test_a_kind_fills_its_template(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    journal = Journal()
    journal.add_event(EventKind.STANDBY_ENDED, "a", reason="exited 1", delay=2.0)
    (entry,) = journal.entries()
    assert entry.to_json() | {"at": 0} == {
        "number": 1,
        "at": 0,
        "subject": "a",
        "kind": "standby_ended",
        "data": {"reason": "exited 1", "delay": 2.0},
        "what": "standby ended",
        "detail": "exited 1; another one in 2 s",
        "text": "standby ended: exited 1; another one in 2 s",
        "tone": "warn",
    }
    assert caplog.messages == ["a: standby ended: exited 1; another one in 2 s"]


@pytest.mark.parametrize("state", State)
def test_a_transition_has_the_words_of_its_state(state: State, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    journal = Journal()
    journal.add_event(EventKind.TRANSITION, "a", "why", state=state.value, cause="exited")
    (entry,) = journal.entries()
    assert (entry.state, entry.what, entry.tone) == (state, state.value, FACTS[state].tone)
    assert entry.text == f"{FACTS[state].sentence}: why"
    assert caplog.messages == [f"a: {state.value}: why"]
    assert caplog.records[0].levelno == FACTS[state].level


def test_every_caller_gives_what_the_kind_needs() -> None:
    """A template needs its data, and takes no free text; read from the source, so that none is missed."""
    used = set()
    for call in (node for file in SOURCES.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))):
        if not (isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_event"):
            continue
        kind = call.args[0]
        if not isinstance(kind, ast.Attribute):  # a variable: the requests of `Supervisor`
            used |= {kind for kind in EventKind if kind.value.endswith("_requested")}
            continue
        used.add(EventKind[kind.attr])
        given = {keyword.arg for keyword in call.keywords}
        if kind.attr == "TRANSITION":
            assert given == {"state", "cause"}
        elif (template := WORDS[EventKind[kind.attr]].detail) is not None:
            assert given == {field for _, field, _, _ in string.Formatter().parse(template) if field}, (
                kind.attr
            )
            assert len(call.args) == 2, kind.attr
    assert used == set(EventKind)
