"""The check of expositions that the tests use finds what is wrong with one, and promtool agrees."""

from __future__ import annotations

import pytest

from tests.promtool import complaints, promtool_complaints

GOOD = """\
# HELP memoria_things_total Things.
# TYPE memoria_things_total counter
memoria_things_total{engine="a"} 2
memoria_things_total{engine="b"} 1
# HELP memoria_things_created Things.
# TYPE memoria_things_created gauge
memoria_things_created{engine="a"} 1.7954886e+09
# HELP memoria_wait_seconds Wait.
# TYPE memoria_wait_seconds histogram
memoria_wait_seconds_bucket{engine="a",le="0.5"} 2
memoria_wait_seconds_bucket{engine="a",le="+Inf"} 6
memoria_wait_seconds_sum{engine="a"} 12.25
memoria_wait_seconds_count{engine="a"} 6
"""


def test_a_good_one_is_accepted_by_both() -> None:
    assert complaints(GOOD) == []
    assert promtool_complaints(GOOD) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param('_total{engine="b"}', '_total{engine="a"}', id="a series twice"),
        pytest.param('{engine="b"}', '{engine="b}', id="a quote that is not closed"),
        pytest.param('{engine="b"}', '{engine="b",engine="b"}', id="a label twice"),
        pytest.param('engine="b"', '1engine="b"', id="a label's name"),
        pytest.param("counter", "countr", id="an unknown type"),
        pytest.param("# HELP memoria_wait_seconds Wait.\n", "", id="no help"),
        pytest.param('le="+Inf"} 6', 'le="+Inf"} 1', id="buckets that fall"),
        pytest.param('memoria_wait_seconds_bucket{engine="a",le="+Inf"} 6\n', "", id="no last bucket"),
        pytest.param('seconds_count{engine="a"} 6', 'seconds_count{engine="a"} 7', id="another count"),
        pytest.param(
            "\n# HELP memoria_wait",
            '\nmemoria_things_total{engine="c"} 1\n# HELP memoria_wait',
            id="scattered",
        ),
        pytest.param("} 1\n", "} one\n", id="no number"),
        pytest.param("memoria_things_total", "memoria_things", id="a counter without _total"),
    ],
)
def test_a_fault_is_found(right: str, wrong: str) -> None:
    assert right in GOOD
    assert complaints(GOOD.replace(right, wrong)) != []
