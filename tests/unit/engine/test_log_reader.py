"""A log's history over all its files, and what follows it: nothing twice, nothing left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoria.engine.log import LogFile, LogReader

START = datetime.now().replace(microsecond=0) - timedelta(hours=10)


def stamped(number: int) -> str:
    """One a minute."""
    at = START + timedelta(minutes=number)
    return f"(APIServer pid=1) INFO {at:%m-%d %H:%M:%S} [core.py:1] line {number}"


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "engine.log", max_bytes=700, keep=3)


@pytest.fixture
def descriptor(log: LogFile) -> Iterator[int]:
    opened = log.open()
    yield opened
    os.close(opened)


def write(log: LogFile, descriptor: int, *lines: str) -> None:
    """And rotates, as memoria does after each look."""
    for line in lines:
        os.write(descriptor, f"{line}\n".encode())
        log.rotate_if_large()


def history(log: LogFile, lines: int | None = None, begin: datetime | None = None) -> list[str]:
    return list(LogReader(log.path, lines=lines, begin=begin).history(whole=True))


def test_history_goes_back_over_the_rotated_files(log: LogFile, descriptor: int) -> None:
    written = [stamped(number) for number in range(40)]
    write(log, descriptor, *written)
    assert {path.name for path in log.path.parent.iterdir()} == {
        "engine.log",
        *(f"engine.log.{n}" for n in (1, 2, 3)),
    }
    assert history(log, 20) == written[-20:]
    assert history(log, 1) == written[-1:]
    assert history(log, 0) == []


def test_right_after_a_rotation_the_history_is_there(log: LogFile, descriptor: int) -> None:
    written = [stamped(number) for number in range(12)]
    write(log, descriptor, *written)
    while log.size():
        written.append(stamped(len(written)))
        write(log, descriptor, written[-1])
    assert history(log, 5) == written[-5:]


@pytest.mark.parametrize("minute", [0, 7, 15, 28, 29])
def test_since_a_time_that_lies_in_an_older_file(log: LogFile, descriptor: int, minute: int) -> None:
    written = [stamped(number) for number in range(30)]
    write(log, descriptor, *written)
    begin = START + timedelta(minutes=minute)
    kept = history(log)
    expected = [line for line in written[minute:] if line in kept]
    assert history(log, None, begin) == expected
    assert history(log, 3, begin) == expected[-3:]
    assert history(log, None, begin + timedelta(seconds=1)) == expected[1 if written[minute] in kept else 0 :]


def test_what_has_no_time_belongs_to_the_line_above(log: LogFile, descriptor: int) -> None:
    write(log, descriptor, stamped(0), "Traceback", stamped(1), "  File", "ValueError", stamped(2))
    assert history(log, None, START + timedelta(minutes=1)) == [
        stamped(1),
        "  File",
        "ValueError",
        stamped(2),
    ]


def test_since_a_time_after_the_last_line_there_is_no_history(log: LogFile, descriptor: int) -> None:
    write(log, descriptor, stamped(0), stamped(1))
    reader = LogReader(log.path, lines=None, begin=datetime.now())
    assert list(reader.history(whole=True)) == []
    write(log, descriptor, "no time, but new")
    assert list(reader.new_lines()) == ["no time, but new"]


def test_more_lines_than_a_block_holds(log: LogFile, descriptor: int) -> None:
    log.limit(max_bytes=10**7, keep=3)
    written = [f"{number:06d} " + "x" * 90 for number in range(3000)]
    os.write(descriptor, "".join(f"{line}\n" for line in written).encode())
    assert history(log, 2000) == written[-2000:]
    assert history(log, 3001) == written


def test_a_line_cut_by_a_rotation_is_put_together(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, ("x" * 800 + "\nhalf a ").encode())
    assert log.rotate_if_large()
    os.write(descriptor, b"line\nthe last")
    assert history(log)[1:] == ["half a line", "the last"]


def test_an_incomplete_line_waits_for_its_end_where_it_is_followed(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"first\nhal")
    reader = LogReader(log.path, lines=10)
    assert list(reader.history(whole=False)) == ["first"]
    os.write(descriptor, b"f\n")
    assert list(reader.new_lines()) == ["half"]


def test_what_was_written_before_a_rotation_is_not_lost_to_a_follower(log: LogFile, descriptor: int) -> None:
    write(log, descriptor, "before")
    reader = LogReader(log.path, lines=10)
    assert list(reader.history(whole=False)) == ["before"]
    os.write(descriptor, ("a" * 500 + "\n" + "b" * 500 + "\n").encode())
    assert log.rotate_if_large()
    write(log, descriptor, "after")
    assert [line[:6] for line in reader.new_lines()] == ["aaaaaa", "bbbbbb", "after"]


def test_a_log_that_has_grown_past_the_old_place_again_is_read_from_its_beginning(
    log: LogFile, descriptor: int
) -> None:
    write(log, descriptor, "short")
    reader = LogReader(log.path, lines=10)
    assert list(reader.history(whole=False)) == ["short"]
    os.write(descriptor, ("y" * 800 + "\n").encode())
    assert log.rotate_if_large()
    write(log, descriptor, "longer than what was there before")
    assert [line[:6] for line in reader.new_lines()] == ["yyyyyy", "longer"]


def test_a_copy_that_is_not_cut_yet_is_not_told_twice(log: LogFile, descriptor: int) -> None:
    """The moment between the two steps of a rotation."""
    write(log, descriptor, "one", "two")
    log.path.with_name("engine.log.1").write_bytes(log.path.read_bytes())
    reader = LogReader(log.path, lines=None)
    assert list(reader.history(whole=False)) == ["one", "two"]
    os.truncate(log.path, 0)
    write(log, descriptor, "three")
    assert list(reader.new_lines()) == ["three"]


def test_without_a_log_there_is_nothing_until_it_is_there(log: LogFile) -> None:
    reader = LogReader(log.path, lines=10)
    assert list(reader.history(whole=False)) == list(reader.new_lines()) == []
    log.path.write_text("there\n")
    assert list(reader.new_lines()) == ["there"]


def test_a_log_that_may_not_be_read_is_an_error(log: LogFile) -> None:
    log.path.mkdir()
    with pytest.raises(IsADirectoryError):
        LogReader(log.path, lines=10)


@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=80),
    looks=st.sets(st.integers(0, 79)),
    lines=st.one_of(st.none(), st.integers(0, 80)),
    opened=st.integers(0, 79),
)
def test_whatever_comes_between_every_line_is_told_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    looks: set[int],
    lines: int | None,
    opened: int,
) -> None:
    """Rotations fall anywhere; so many files are kept that nothing is thrown away."""
    log = LogFile(tmp_path_factory.mktemp("log") / "engine.log", max_bytes=300, keep=50)
    descriptor = log.open()
    written = [f"{number}:".ljust(length, "x") for number, length in enumerate(lengths)]
    opened = min(opened, len(written))
    try:
        write(log, descriptor, *written[:opened])
        reader = LogReader(log.path, lines=lines)
        told = list(reader.history(whole=False))
        for number, line in enumerate(written[opened:]):
            write(log, descriptor, line)
            if number in looks:
                told += reader.new_lines()
        told += reader.new_lines()
    finally:
        os.close(descriptor)
    expected = written if lines is None else written[max(0, opened - lines) :]
    assert told == expected
