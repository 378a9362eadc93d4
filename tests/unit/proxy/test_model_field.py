from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.proxy.routing.bodies import model_in_form, model_in_json

LARGE = "x" * 100_000

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=6) | st.just("model"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=8), VALUES, max_size=5),
    st.none() | st.text(st.characters(codec="utf-8")),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_reading_one_field_finds_what_parsing_finds(
    document: dict[str, Any], model: str | None, indent: int | str | None, ascii_only: bool
) -> None:
    document.pop("model", None)
    if model is not None:
        document["model"] = model
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert model_in_json(body) == model


@given(st.binary(max_size=200) | st.text('{}[]",:\\ model01eu', max_size=60).map(str.encode))
def test_rubbish_is_refused(body: bytes) -> None:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("model"), str | None):
        assert model_in_json(body) == document.get("model")
    elif document is not None:
        with pytest.raises(ValueError, match=r"."):
            model_in_json(body)


@pytest.mark.parametrize("filler", ["", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("fields", "model"),
    [
        ('"model":"a"', "a"),
        ('"model":"a","model":"b"', "b"),
        ('"model":"a","model":null', None),
        ('"mo\\u0064el":"a"', "a"),
        ('"model" \r\n:\t"a"', "a"),
        ('"x":{"model":"b"},"y":["model","c"]', None),
        ('"x":"\\"model\\":\\"b\\"","model":"\\u00e4\\n\\""', 'ä\n"'),
        ('"x":"\\\\","model":"a"', "a"),
        ('"x":["]","}",{"y":"\\"]"}],"model":"a"', "a"),
        ('"x":-1.5e+3,"y":true,"model":"a"', "a"),
        ('"model":null', None),
    ],
)
def test_the_top_level_model_is_found(fields: str, model: str | None, filler: str) -> None:
    assert model_in_json(f' {{{fields},"filler":"{filler}"}}\n'.encode()) == model


@pytest.mark.parametrize("filler", ["", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "body",
    [
        '["{}"]',
        '"{}"',
        '{{"a":"{}"',
        '{{"a" "{}"}}',
        '{{"a":"{}","model":7}}',
        '{{"a":"{}","model":["b"]}}',
        "{}no",
    ],
)
def test_what_is_no_object_with_a_model_is_refused(body: str, filler: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        model_in_json(body.format(filler).encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_body_in_another_encoding_is_read(encoding: str) -> None:
    assert model_in_json(('{"x":"' + LARGE + '","model":"ä"}').encode(encoding)) == "ä"


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"\\ud83d"', '"\\\\ud83d"', "[Infinity]"])
@pytest.mark.parametrize("filler", ["", LARGE], ids=["small", "large"])
def test_what_pythons_parser_reads_is_read(value: str, filler: str) -> None:
    """vLLM reads with it: JavaScript writes lone surrogates where it cuts an emoji in two."""
    assert model_in_json(f'{{"a":{value},"filler":"{filler}","model":"m-NaN"}}'.encode()) == "m-NaN"


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000, b'{"a":' + b"[" * 90_000])
def test_deep_nesting_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        model_in_json(body)


def test_a_form_has_two_thousand_parts_at_most() -> None:
    with pytest.raises(ValueError, match="more than 2000 parts"):
        model_in_form(b"--b\r\na: b\r\n\r\n\r\n" * 2001, FORM)


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--b\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


FORM = b'multipart/form-data; charset=utf-8; boundary="b"'


@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ([part("file", b"\r\n\r\n\x00--bx", '; filename="a"'), part("model", b"m")], "m"),
        ([part("model", b"first"), part("model", b"last")], "last"),
        ([part("model", b"a file", '; filename="x"')], None),
        ([part("models", b"m"), part("xmodel", b"m")], None),
        ([part("model", "ä".encode())], "ä"),
    ],
)
def test_the_model_field_of_a_form_is_found(parts: list[bytes], model: str | None) -> None:
    assert model_in_form(b"".join(parts) + b"--b--\r\n", FORM) == model


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"multipart/form-data", b"", b"multipart/form-data; boundary=other"]
)
def test_what_is_no_form_is_refused(content_type: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        model_in_form(part("model", b"m") + b"--b--\r\n", content_type)
