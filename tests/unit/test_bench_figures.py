"""The figures of `memoria bench`, its table and its picture."""

from __future__ import annotations

from xml.etree import ElementTree

from memoria.bench.figures import Embedding, Generation, Phase, Times, percentiles, times
from memoria.bench.plot import as_svg
from memoria.cli.render_bench import render_phases

EMBEDDING = Embedding("embedding", 1234.0, Times(0.020, 0.05))
GENERATION = Generation("generation", 87.5, Times(0.1, 0.25), Times(0.011, 0.0309), (0.01, 0.02, 0.03))
PHASES = (
    Phase("embedding alone", 20.0, EMBEDDING, None, 0, None),
    Phase("generation alone", 20.0, None, GENERATION, 0, None),
    Phase("together", 20.0, EMBEDDING, GENERATION, 2, "503: engine `generation` has failed"),
)


def test_times_are_nearest_ranks() -> None:
    assert times([]) is None
    assert times([3.0]) == Times(3.0, 3.0)
    assert times([float(number) for number in range(1, 101)]) == Times(50.0, 99.0)


def test_percentiles_are_as_many_as_a_curve_has_points() -> None:
    assert percentiles([]) == ()
    assert percentiles([2.0, 1.0]) == (1.0,) * 50 + (2.0,) * 49


def test_the_table_has_a_line_for_each_phase_and_tells_what_failed() -> None:
    assert render_phases(PHASES).splitlines() == [
        "                  EMBEDDINGS/S  p50 / p99   TOKENS/S  FIRST TOKEN p50 / p99  BETWEEN TOKENS p50 / p99",  # noqa: E501
        "embedding alone   1234          20 / 50 ms  -         -                      -",
        "generation alone  -             -           87.5      100 / 250 ms           11 / 30.9 ms",
        "together          1234          20 / 50 ms  87.5      100 / 250 ms           11 / 30.9 ms",
        "together: 2 requests failed, the first: 503: engine `generation` has failed",
    ]


def test_the_picture_is_svg_with_a_bar_for_each_rate_and_a_curve_for_each_stream() -> None:
    svg = ElementTree.fromstring(as_svg(PHASES, "one <GPU> & two models"))
    name = "{http://www.w3.org/2000/svg}"
    background, legend, bars = 1, len(PHASES), 4
    assert len(svg.findall(f"{name}rect")) == background + legend + bars
    assert len(svg.findall(f"{name}polyline")) == 2
    assert "one <GPU> & two models" in [text.text for text in svg.findall(f"{name}text")]


def test_a_picture_of_nothing_is_drawn_too() -> None:
    ElementTree.fromstring(as_svg([Phase("together", 1.0, None, None, 9, "refused")], ""))
