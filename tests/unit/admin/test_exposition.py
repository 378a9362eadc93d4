"""Expositions of several engines in one, in Prometheus's text format."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.admin.telemetry.exposition import Exposition, Histogram, counter, gauge, histogram
from tests.promtool import complaints

VLLM = b"""\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",version="3.11.7"} 1.0
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 33.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 12.0
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7954886e+09
# HELP vllm:ttft_seconds Histogram of time to first token in seconds.
# TYPE vllm:ttft_seconds histogram
vllm:ttft_seconds_bucket{engine="0",le="0.5",model_name="tiny"} 1.0
vllm:ttft_seconds_bucket{engine="0",le="+Inf",model_name="tiny"} 2.0
vllm:ttft_seconds_count{engine="0",model_name="tiny"} 2.0
vllm:ttft_seconds_sum{engine="0",model_name="tiny"} 3.5
"""


def merged(**texts: bytes) -> list[str]:
    exposition = Exposition()
    for engine, text in texts.items():
        for _ in exposition.merge(text, engine):
            pass
    return exposition.render().decode().splitlines()


def series(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#")]


def test_a_family_of_two_engines_stands_together_under_one_heading() -> None:
    lines = merged(embedding=VLLM, generation=VLLM)
    at = lines.index("# HELP vllm:prompt_tokens_total Number of prefill tokens processed.")
    assert lines[at + 1 : at + 4] == [
        "# TYPE vllm:prompt_tokens_total counter",
        'vllm:prompt_tokens_total{engine="embedding",exported_engine="0",model_name="tiny"} 12.0',
        'vllm:prompt_tokens_total{engine="generation",exported_engine="0",model_name="tiny"} 12.0',
    ]
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == len(set(headings)) == 10
    assert len(set(series(lines))) == 2 * len(series(VLLM.decode().splitlines()))


def test_what_is_merged_is_valid() -> None:
    assert complaints("\n".join([*merged(embedding=VLLM, generation=VLLM), ""])) == []


def test_a_series_without_labels_gets_one() -> None:
    assert 'process_open_fds{engine="embedding"} 33.0' in merged(embedding=VLLM)


def test_memorias_own_series_share_a_family_with_the_engines() -> None:
    exposition = Exposition([gauge("process_open_fds", "Own help.", [({}, 7)])])
    assert list(exposition.merge(VLLM, "embedding"))
    assert exposition.render().decode().splitlines()[:4] == [
        "# HELP process_open_fds Own help.",
        "# TYPE process_open_fds gauge",
        "process_open_fds 7",
        'process_open_fds{engine="embedding"} 33.0',
    ]


def test_another_versions_help_is_left_out_and_its_new_families_are_there() -> None:
    newer = VLLM.replace(b"prefill tokens", b"prompt tokens").replace(b"open_fds", b"max_fds")
    lines = merged(old=VLLM, new=newer)
    assert len([line for line in lines if line.startswith("# HELP vllm:prompt_tokens_total")]) == 1
    assert {'process_open_fds{engine="old"} 33.0', 'process_max_fds{engine="new"} 33.0'} <= set(lines)


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_where_two_versions_do_not_agree_on_a_type_there_is_none(order: tuple[str, str]) -> None:
    texts = {"old": VLLM, "new": VLLM.replace(b"seconds histogram\n", b"seconds summary\n")}
    lines = merged(**{name: texts[name] for name in order})
    assert [line for line in lines if line.startswith("# TYPE vllm:ttft")] == [
        "# TYPE vllm:ttft_seconds untyped"
    ]
    assert sum("ttft_seconds_bucket" in line for line in lines) == 4


def test_series_without_any_heading_are_kept() -> None:
    lines = merged(a=b'one 1\none_two{x="y"} 2\n', b=b"one 3\n")
    assert series(lines) == ['one{engine="a"} 1', 'one_two{engine="a",x="y"} 2', 'one{engine="b"} 3']


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff", b"name", b"name{", b'name{a="b} 1', b'name{a="b"', b"name{a=b} 1", b"1name 1", b"# EOF"],
)
def test_a_line_that_is_not_in_the_format_is_left_out(line: bytes) -> None:
    lines = merged(a=b"# TYPE good gauge\n" + line + b"\ngood 1\n")
    assert series(lines) == ['good{engine="a"} 1']


def test_an_answer_cut_in_the_middle_spoils_nothing() -> None:
    for cut in range(len(VLLM)):
        assert all(re.fullmatch(r'\S+\{engine="a".*\} \S+', line) for line in series(merged(a=VLLM[:cut])))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (b'{engine="0"}', 'x{engine="a",exported_engine="0"} 1'),
        (b'{b="1",engine="0",z="2"}', 'x{engine="a",b="1",exported_engine="0",z="2"} 1'),
        (b'{b="1,engine=",c="d"}', 'x{engine="a",b="1,engine=",c="d"} 1'),
        (b'{b="a\\",engine=\\"0"}', 'x{engine="a",b="a\\",engine=\\"0"} 1'),
        (b'{my_engine="0"}', 'x{engine="a",my_engine="0"} 1'),
        (b'{b="}{ 7",}', 'x{engine="a",b="}{ 7",} 1'),
        (
            b'{engine="0",exported_engine="1"}',
            'x{engine="a",exported_exported_engine="0",exported_engine="1"} 1',
        ),
        (b'{b="\\"",engine="0",}', 'x{engine="a",b="\\"",exported_engine="0"} 1'),
    ],
)
def test_only_a_label_named_engine_is_renamed(labels: bytes, expected: str) -> None:
    assert series(merged(a=b"# TYPE x gauge\nx" + labels + b" 1\n")) == [expected]


def test_a_time_beside_the_value_stays() -> None:
    assert series(merged(a=b"x 1.5 1700000000000\n")) == ['x{engine="a"} 1.5 1700000000000']


@given(st.text(alphabet=string.printable + 'é\\"\n', max_size=30))
def test_any_text_may_be_a_label_of_memorias_own(text: str) -> None:
    rendered = Exposition([gauge("memoria_x", "X.", [({"a": text}, 1)])]).render()
    again = Exposition()
    assert list(again.merge(rendered, "e")) == [None, None]  # a turn for others after every heading
    assert again.render() == rendered.replace(b"memoria_x{", b'memoria_x{engine="e",')


def test_own_families_are_valid_and_an_empty_one_is_not_there() -> None:
    observed = Histogram((0.5, 1.0))
    observed.counts[:] = [2, 1, 3]
    observed.sum = 12.25
    text = Exposition(
        [
            counter("memoria_things_total", "Things.", [({"engine": "a"}, 2), ({"engine": ""}, 1)]),
            gauge("memoria_nothing", "Nothing.", []),
            histogram("memoria_wait_seconds", "Wait.", [({"engine": "a"}, observed)]),
        ]
    ).render()
    assert complaints(text.decode()) == []
    assert series(text.decode().splitlines())[2:] == [
        'memoria_wait_seconds_bucket{engine="a",le="0.5"} 2',
        'memoria_wait_seconds_bucket{engine="a",le="1"} 3',
        'memoria_wait_seconds_bucket{engine="a",le="+Inf"} 6',
        'memoria_wait_seconds_sum{engine="a"} 12.25',
        'memoria_wait_seconds_count{engine="a"} 6',
    ]
    assert b"nothing" not in text
