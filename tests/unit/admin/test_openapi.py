"""The description of the admin API against its routes and types."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, cast

import jsonschema
from starlette.routing import Route

from memoria.admin.api import openapi
from memoria.admin.api.app import admin_app
from memoria.admin.api.openapi import Error
from memoria.engine.events import EventKind, Journal
from memoria.engine.lifecycle import State, Tone
from memoria.proxy.errors import bad_request
from tests.unit.status_examples import HEALTHY

SPEC: dict[str, Any] = json.loads(openapi.document())
SCHEMAS = SPEC["components"]["schemas"]
NOTHING = cast(Any, None)  # routes are only listed


def validate(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_every_route_is_described_with_its_method() -> None:
    app = admin_app(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, names=NOTHING)
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    described = {(path, method) for path, methods in SPEC["paths"].items() for method in methods}
    assert described == {one for one in routes if one[1] != "head"} - {("/openapi.json", "get")}


def test_every_reference_leads_somewhere() -> None:
    references = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                references.add(value["$ref"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(SPEC)
    assert len(references) > 20
    for reference in references:
        found: Any = SPEC
        for key in reference.removeprefix("#/").split("/"):
            found = found[key]


def test_a_status_has_its_types_fields_and_one_of_the_states() -> None:
    validate(json.loads(json.dumps(HEALTHY.to_json())), "Status")
    engine = SCHEMAS["EngineStatus"]
    assert engine["required"] == list(asdict(HEALTHY.engines[0]))
    assert engine["properties"]["state"]["enum"] == list(State)
    assert engine["additionalProperties"] is False


def test_attributes_are_described_by_their_docstrings() -> None:
    assert SCHEMAS["EngineStatus"]["properties"]["since"]["description"] == "Unix time."
    assert SCHEMAS["RequestFacts"]["properties"]["at"]["description"] == "Unix time of its end."


def test_an_error_has_the_shape_of_all_errors() -> None:
    validate(json.loads(bad_request("No.").body), Error.__name__)


def test_an_entry_of_the_journal_has_the_fields_of_its_event() -> None:
    journal = Journal()
    journal.add_event(EventKind.LISTENING, "memoria", "http://127.0.0.1:8200")
    validate(journal.entries()[0].to_json(), "JournalEvent")
    assert SCHEMAS["EventKind"]["enum"] == list(EventKind)
    assert SCHEMAS["Tone"]["enum"] == list(Tone)
