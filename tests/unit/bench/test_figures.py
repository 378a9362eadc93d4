"""The figures of `memoria bench`, its tables and its picture."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

from memoria.bench.figures import Embedding, Failures, Generation, Phase, Times, percentiles, times
from memoria.bench.load import Load
from memoria.bench.plot import as_svg
from memoria.cli.screens.bench import render_phases

LOAD = Load(20.0, 3.0, streams=16, prompt_words=128, max_tokens=64, embedders=8, texts=4, text_words=50)
EMBEDDING = Embedding("embedding", 1234.0, 52.4, Times(0.020, 0.05))
GENERATION = Generation("generation", 87.5, 131.2, Times(0.1, 0.25), Times(0.011, 0.0309), (0.01, 0.02, 0.03))
SLOW = replace(EMBEDDING, rate=900.0, latency=Times(0.25, 12.34))
FAILED = replace(GENERATION, rate=43.75, failures=Failures(2, "503: engine `generation` has failed\x1b[2J"))
PHASES = (
    Phase("embedding alone", 20.0, (EMBEDDING,), ()),
    Phase("generation alone", 20.0, (), (GENERATION,)),
    Phase("together", 20.0, (SLOW,), (FAILED,)),
)


def test_times_are_nearest_ranks() -> None:
    assert times([]) is None
    assert times([3.0]) == Times(3.0, 3.0)
    assert times([float(number) for number in range(1, 101)]) == Times(50.0, 99.0)


def test_percentiles_are_as_many_as_a_curve_has_points() -> None:
    assert percentiles([]) == ()
    assert percentiles([2.0, 1.0]) == (1.0,) * 50 + (2.0,) * 49


def test_there_is_a_table_for_each_kind_and_an_engine_s_phases_stand_below_each_other() -> None:
    shown = render_phases(PHASES, LOAD)
    assert shown.splitlines() == [
        "ENGINE     LOADED    TEXTS/S  KEPT  ANSWER p50      p99",
        "embedding  alone        1234     -     20.0 ms  50.0 ms",
        "embedding  together      900  73 %      250 ms   12.3 s",
        "",
        "ENGINE      LOADED    TOKENS/S  KEPT  FIRST p50     p99  NEXT p50      p99",
        "generation  alone         87.5     -     100 ms  250 ms   11.0 ms  30.9 ms",
        "generation  together      43.8  50 %     100 ms  250 ms   11.0 ms  30.9 ms",
        "",
        "embedding: 8 clients, 4 texts per request, 52 tokens each",
        "generation: 16 streams, 64 tokens each, prompts of 131 tokens",
        "Each phase was measured for 20 s after 3 s of warm-up.",
        "together, generation: 2 requests failed, the first: 503: engine `generation` has failed\\x1b[2J",
    ]
    assert max(map(len, shown.splitlines()[:7])) <= 80


def test_events_that_stand_for_tokens_are_called_events() -> None:
    uncounted = Phase("generation alone", 20.0, (), (replace(GENERATION, counted=False),))
    assert "generation alone: vLLM sent no token counts: these are events" in render_phases([uncounted], LOAD)


def test_what_is_unknown_is_a_dash() -> None:
    nothing = Embedding("embedding", 0.0, None, None, Failures(1, "no answer in 23 s"))
    lines = render_phases([Phase("embedding alone", 20.0, (nothing,))], LOAD).splitlines()
    assert lines[1].split() == ["embedding", "alone", "0.0", "-", "-", "-"]
    assert lines[3] == "embedding: 8 clients, 4 texts per request, 50 words each"
    assert lines[-1] == "embedding alone: 1 request failed, the first: no answer in 23 s"


def test_the_picture_has_a_bar_for_each_rate_and_wait_and_a_curve_for_each_stream() -> None:
    svg = ElementTree.fromstring(as_svg(PHASES, "one <GPU> & two models"))
    name = "{http://www.w3.org/2000/svg}"
    background, legend, bars = 1, 2, 2 + 2 + 2
    assert len(svg.findall(f"{name}rect")) == background + legend + bars
    assert len(svg.findall(f"{name}polyline")) == 2
    words = [text.text for text in svg.findall(f"{name}text")]
    assert "one <GPU> & two models" in words
    assert "100 ms – 250 ms" in words


def test_curves_of_several_engines_differ_by_more_than_colour() -> None:
    second = replace(GENERATION, engine="second")
    phases = [Phase("together", 1.0, (), (GENERATION, second))]
    svg = ElementTree.fromstring(as_svg(phases, ""))
    lines = svg.findall("{http://www.w3.org/2000/svg}polyline")
    assert len({line.attrib["stroke-dasharray"] for line in lines}) == 2


def test_a_picture_of_nothing_is_drawn_too() -> None:
    silent = Generation("generation", 0.0, None, None, None, (), failures=Failures(9, "refused"))
    ElementTree.fromstring(as_svg([Phase("generation alone", 1.0, (), (silent,))], ""))
