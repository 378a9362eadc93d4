"""The part of an engine's log that the screen shows under a failure."""

from __future__ import annotations

from memoria.vllm.diagnosis import excerpt


def test_the_excerpt_leaves_out_what_an_engine_says_while_all_is_well() -> None:
    said = "(APIServer pid=7) INFO 11-29 16:47:57 [launcher.py:195] "
    tail = [
        f"{said}Route: /v1/completions, Methods: POST",
        "INFO:     Application startup complete.",
        'INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK',
        f"{said}something else",
        f"{said}Engine 000: Avg prompt throughput: 0.1 tokens/s",
    ]
    assert excerpt(tail, 20) == [tail[3]]


def test_the_excerpt_ends_with_the_first_errors_end() -> None:
    error = ["Traceback (most recent call last):", '  File "x.py", line 1, in main', "ValueError: no"]
    leaks = [f"leaked instance {number}" for number in range(50)]
    shown = excerpt(["before", *error, *leaks], 20)
    assert shown[:4] == ["before", *error]
    assert len(shown) <= 20
