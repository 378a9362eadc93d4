from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.config.model import Filters
from memoria.proxy.routing.bodies import apply_filters

NOTHING = Filters()


def changed(body: str | bytes, filters: Filters) -> Any:
    return json.loads(apply_filters(body.encode() if isinstance(body, str) else body, filters))


def test_fields_are_stripped_then_set() -> None:
    filters = Filters(("temperature", "absent"), {"top_p": 0.9, "chat_template_kwargs": {"thinking": False}})
    body = '{"model": "m", "temperature": 1.5, "top_p": 0.1, "messages": [{"temperature": 3}]}'
    assert changed(body, filters) == {
        "model": "m",
        "top_p": 0.9,
        "messages": [{"temperature": 3}],
        "chat_template_kwargs": {"thinking": False},
    }


def test_a_field_may_be_stripped_and_set() -> None:
    assert changed('{"a": 1}', Filters(("a",), {"a": 2})) == {"a": 2}


def test_a_field_that_stands_there_twice_cannot_slip_through() -> None:
    body = apply_filters(b'{"temperature": 1, "x": 0, "\\u0074emperature": 2}', Filters(("temperature",)))
    assert body == b'{"x":0}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"model"',
        b"1",
        b"{",
        b'{"a": 1} x',
        b"\xff",
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_object_does_not_go_on(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        apply_filters(body, NOTHING)


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
def test_many_values_are_no_reason_to_refuse(size: int) -> None:
    body = b'{"input":[' + b"[1,2]," * size + b'0],"temperature":1}'
    assert apply_filters(body, Filters(("temperature",))) == b'{"input":[' + b"[1,2]," * size + b"0]}"


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "0.10", "123456789012345678901234567890"])
def test_numbers_that_vllm_takes_go_on_as_they_came(value: str) -> None:
    assert apply_filters(f'{{"a":{value},"b":0}}'.encode(), Filters(("b",))) == f'{{"a":{value}}}'.encode()


@pytest.mark.parametrize("text", ["ä 漢 😀", "\ud800", "\x00\x1f", "</script>"])
def test_text_stays_what_it_was(text: str) -> None:
    assert changed(json.dumps({"prompt": text}), NOTHING) == {"prompt": text}


def test_other_encodings_of_json_become_utf_8() -> None:
    assert json.loads(apply_filters('{"a":"ä"}'.encode("utf-16"), NOTHING).decode("utf-8")) == {"a": "ä"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=6)


@given(document=OBJECTS, strip=st.lists(st.text(max_size=3), max_size=3), put=OBJECTS)
def test_everything_else_stays_as_it_was(
    document: dict[str, Any], strip: list[str], put: dict[str, Any]
) -> None:
    left = {key: value for key, value in document.items() if key not in strip}
    assert changed(json.dumps(document), Filters(tuple(strip), put)) == left | put
