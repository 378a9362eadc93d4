"""Large bodies, read piece by piece: what is found is what vLLM's parser finds, and no step takes long."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.config.model import Filters
from memoria.proxy.routing import scan
from memoria.proxy.routing.bodies import apply_to_large
from memoria.proxy.routing.scan import FormScan, JsonScan, Scan

READ = 256 * 1024  # bytes, the largest read of a connection
LONGEST_S = 0.02

KEYS = st.sampled_from(["model", "temperature", "mod", "el", "\r/ä😀", 'x"y', "\\"]) | st.text(max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(['"model":', "\\", '\\"', "}]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


def pieces_of(body: bytes, cuts: Sequence[int] = ()) -> list[bytes]:
    places = [0, *sorted({cut for cut in cuts if cut < len(body)}), len(body)]
    return [body[start:end] for start, end in pairwise(places) if end > start]


def scanned(made: Scan, pieces: Sequence[bytes]) -> Scan:
    for piece in pieces:
        made.feed(piece)
        while not made.advance(0):
            pass
    return made


def spelt(key: str, kind: str) -> str:
    if kind == "escapes":
        units = key.encode("utf-16-be", "surrogatepass").hex("-", 2).split("-") if key else []
        return '"' + "".join(f"\\u{unit}" for unit in units) + '"'
    return json.dumps(key, ensure_ascii=kind == "ascii")


@pytest.mark.parametrize("size", [128, scan._SLICE])
@given(
    members=st.lists(st.tuples(KEYS, VALUES, st.sampled_from(["ascii", "itself", "escapes"])), max_size=6),
    blank=st.sampled_from(["", " ", "\n \t"]),
    cuts=st.lists(st.integers(4, 300), max_size=8),
    strip=st.lists(KEYS, max_size=2),
    put=st.dictionaries(KEYS, st.integers(), max_size=2),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]),
)
def test_what_is_found_and_changed_is_what_the_parser_sees(  # noqa: PLR0917 - hypothesis names them
    size: int,
    members: list[tuple[str, Any, str]],
    blank: str,
    cuts: list[int],
    strip: list[str],
    put: dict[str, int],
    encoding: str,
) -> None:
    """A repeated key, a key in escapes, a key inside a value or a text, a cut anywhere."""
    pairs = [f"{spelt(key, kind)}{blank}:{blank}{json.dumps(value)}" for key, value, kind in members]
    text = "{" + blank + f"{blank},{blank}".join(pairs) + blank + "}" + blank
    body = text.encode(encoding, "surrogatepass")
    parsed = json.loads(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_SLICE", size)
        patch.setattr(scan, "_LONGEST_KEY", 100)
        pieces = pieces_of(body, cuts)
        made = scanned(JsonScan([*strip, *put]), pieces)
    assert isinstance(made, JsonScan)
    model = parsed.get("model")
    if model is None or isinstance(model, str):
        assert made.model() == model
    else:
        with pytest.raises(ValueError, match="not a string"):
            made.model()
    changed = json.loads(b"".join(apply_to_large(pieces, made, Filters(tuple(strip), put))))
    expected = {key: value for key, value in parsed.items() if key not in strip} | put
    assert repr(sorted(changed.items())) == repr(sorted(expected.items()))  # nan is not itself


@given(st.binary(max_size=200) | st.text('{}[]",:\\ model01eu', max_size=60).map(str.encode))
def test_rubbish_is_refused_or_left_to_the_engine(body: bytes) -> None:
    made = scanned(JsonScan(["m"]), pieces_of(body, [5, 9]))
    try:
        document = json.loads(body)
    except ValueError:
        return  # the engine will refuse it
    if isinstance(document, dict) and isinstance(document.get("model"), str | None):
        assert made.model() == document.get("model")
    else:
        with pytest.raises(ValueError, match=r"."):
            made.model()


@pytest.mark.parametrize("body", [b"", b" ", b"[]", b'"model"', b"{", b'{"a":{', b'{"a":"\\'])
def test_what_is_no_whole_object_is_refused(body: bytes) -> None:
    made = scanned(JsonScan([]), [body])
    for read in (made.model, lambda: apply_to_large([body], made, Filters())):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"."):
            read()


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize(
    ("members", "left"),
    [
        ([], []),
        (["u"], []),
        (["u", "u"], []),
        (["a", "u"], ["a"]),
        (["u", "a"], ["a"]),
        (["u", "a", "u", "v"], ["a"]),
        (["a", "u", "b", "v", "u"], ["a", "b"]),
    ],
)
def test_members_are_taken_out_with_their_commas_wherever_a_read_ends(
    members: list[str], left: list[str], blank: str
) -> None:
    body = ("{" + ",".join(f'{blank}"{name}"{blank}:{blank}1{blank}' for name in members) + "}").encode()
    for first in range(len(body)):
        for second in range(first, len(body)):
            pieces = [body[:first], body[first:second], body[second:]]
            made = scanned(JsonScan(["u", "v"]), pieces)
            assert isinstance(made, JsonScan)
            for put in ({}, {"n": 2}):
                found = b"".join(apply_to_large(pieces, made, Filters(("u", "v"), put)))
                assert json.loads(found) == put | dict.fromkeys(left, 1), (body, pieces)


def filled(
    text: bytes, start: bytes = b'{"p":', end: bytes = b',"model":"m"}', *, size: int = 2**20
) -> bytes:
    return start + text * (size // len(text)) + end


def bodies() -> Iterator[tuple[str, bytes]]:
    rest = b'"model":"m"}'
    yield "one text", filled(b"text ", b'{"p":"', b'",' + rest, size=2**23)
    yield "base64", filled(base64.b64encode(bytes(range(255))), b'{"p":"', b'",' + rest, size=2**23)
    for text in (b"\\n", b'\\"', b"\\u006d", b'\\"model\\":', "ä".encode()):
        yield f"text of {text!r}", filled(text, b'{"p":"', b'",' + rest)
    for value in (b'"",', b"1,", b"[],", b'{"model":1},', b"[[[[]]]],", b"[{},[]],"):
        yield f"values {value!r}", filled(value, b'{"p":[', b"0]," + rest)
        yield f"model of {value!r}", filled(value, b'{"model":[', b"0]," + rest)
    for member in (
        b'"":1,',
        b'"a":[],',
        b'"model":1,',
        b'"temperature":[],',
        b'"\\u006d":1,',
        b'"model"',
        b":",
    ):
        yield f"members {member!r}", filled(member, b"{", rest)
    yield "nested", b'{"p":' + b"[" * 2**19 + b"]" * 2**19 + b"," + rest
    yield "blanks", filled(b" ", b"{", rest)
    yield "a long key", filled(b"k", b'{"', b'":1,' + rest)


FORM = b"multipart/form-data; boundary=b"
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'


def forms() -> Iterator[tuple[str, bytes]]:
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    yield "a file", filled(b"\0", file, b"\r\n" + MODEL, size=2**23)
    yield "nearly the end", filled(b"\r\n--a", file, b"\r\n" + MODEL)
    yield "a long head", filled(b"a: b\r\n", b"--b\r\n", b"\r\nx\r\n" + MODEL)
    yield "long heads", filled(b"--b\r\na:" + b"\r\nb" * 5000 + b"\r\n\r\n\r\n", b"", MODEL)
    yield "parts", filled(b"--b\r\na: b\r\n\r\n\r\n", b"", MODEL, size=2**15)


@pytest.mark.parametrize(
    ("made", "body"),
    [
        *(pytest.param(JsonScan(["temperature"]), body, id=name) for name, body in bodies()),
        *(pytest.param(FormScan(FORM), body, id=name) for name, body in forms()),
    ],
)
def test_no_step_takes_long_whatever_is_sent(made: Scan, body: bytes) -> None:
    """In time of this thread: the machine may be busy otherwise."""
    longest = 0.0
    for place in range(0, len(body), READ):
        made.feed(body[place : place + READ])
        done = False
        while not done:
            began = time.thread_time()
            done = made.advance()
            longest = max(longest, time.thread_time() - began)
    assert longest < LONGEST_S
    with suppress(ValueError):  # it repeats a field too often
        assert made.model() == "m"


@given(
    cuts=st.lists(st.integers(1, 400), max_size=9),
    value=st.binary(max_size=40).filter(lambda v: b"--b" not in v),
)
def test_a_form_may_be_cut_anywhere(cuts: list[int], value: bytes) -> None:
    file = b'--b\r\ncontent-disposition: form-data; name="file"; filename="m"\r\n\r\n' + value + b"\r\n"
    pieces = pieces_of(b"preamble" + file + MODEL.removesuffix(b"--b--\r\n") + file + b"--b--\r\n", cuts)
    assert scanned(FormScan(FORM), pieces).model() == "m"
