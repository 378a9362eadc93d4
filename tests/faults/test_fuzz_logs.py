"""memoria reads what an engine writes: no bytes, in whatever pieces, may do harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memoria.engine.log import LONGEST_LINE, Follower
from memoria.logs import printable
from memoria.vllm.diagnosis import diagnose, excerpt
from memoria.vllm.facts import ExitStatus
from memoria.vllm.log_lines import StartFigures, read_line, text_of

REAL = [
    line
    for file in sorted((Path(__file__).parents[1] / "data" / "logs").glob("*.log"))
    for line in file.read_text().splitlines()
]
BITS = st.sampled_from(
    [
        "(EngineCore pid=1) ",
        "INFO 11-23 14:22:28 [core.py:402] ",
        "ERROR ",
        "\x1b[31m",
        "\x1b[",
        " GiB",
        "-",
        "%",
        "99",
    ]
)


@st.composite
def nearly_real(draw: st.DrawFn) -> str:
    """A line of a real log with a piece of it replaced."""
    line = draw(st.sampled_from(REAL))
    begin = draw(st.integers(0, len(line)))
    end = draw(st.integers(begin, len(line)))
    return line[:begin] + draw(BITS | st.text(max_size=8) | st.integers().map(str)) + line[end:]


LINES = nearly_real() | st.text() | st.lists(BITS).map("".join)
ENDINGS = st.builds(ExitStatus, code=st.integers(0, 255)) | st.builds(ExitStatus, signal=st.integers(1, 64))


@given(st.lists(LINES, max_size=20))
def test_any_line_tells_a_phase_or_nothing(lines: list[str]) -> None:
    figures = StartFigures()
    for line in lines:
        assert len(text_of(line)) <= len(line)
        seen = read_line(line)
        if seen is not None:
            figures = figures.with_observation(seen)
    assert figures.max_model_len is None or figures.max_model_len >= 0


@given(st.lists(LINES, max_size=40), ENDINGS)
def test_any_log_has_a_diagnosis_that_can_be_shown(lines: list[str], ending: ExitStatus) -> None:
    found = diagnose(lines, ending)
    assert found.cause
    assert "\n" not in printable(found.cause)
    assert len(excerpt(lines, 20)) <= 20


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "engine.log"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=200) | st.just(b"\n") | st.just(b"x" * 5000), max_size=12))
def test_however_bytes_come_the_same_lines_are_read(log: Path, pieces: list[bytes]) -> None:
    log.write_bytes(b"")
    follower = Follower(log, 0)
    read: list[str] = []
    for piece in pieces:
        with log.open("ab", buffering=0) as file:
            file.write(piece)
        read += follower.new_lines()
    whole = [line for line in b"".join(pieces).replace(b"\r", b"\n").split(b"\n")[:-1] if line]
    assert [line[:LONGEST_LINE] for line in read] == [
        line[:LONGEST_LINE].decode(errors="replace") for line in whole
    ]
