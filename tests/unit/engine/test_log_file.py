"""A log that its engine writes and memoria reads and rotates."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoria.engine.log import LONGEST_LINE, READ_AT_ONCE, LogFile
from memoria.errors import UnavailableError


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "logs" / "engine.log", max_bytes=1000, keep=2)


@pytest.fixture
def descriptor(log: LogFile) -> Iterator[int]:
    opened = log.open()
    yield opened
    os.close(opened)


def older(log: LogFile, number: int) -> str:
    return log.path.with_name(f"engine.log.{number}").read_text()


def test_a_log_is_rotated_while_a_child_writes_it(log: LogFile, descriptor: int) -> None:
    script = "import sys\nfor line in sys.stdin: print(line.strip().ljust(600, '.'), flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=descriptor, bufsize=0
    )
    assert child.stdin is not None
    follower, seen = log.follow(), []
    for name in ("first", "second", "third", "fourth", "fifth"):
        child.stdin.write(f"{name}\n".encode())
        while not (new := list(follower.new_lines())):
            assert child.poll() is None
        seen += new
        log.rotate_if_large()
    child.stdin.close()
    assert child.wait() == 0
    assert [line.rstrip(".") for line in seen] == ["first", "second", "third", "fourth", "fifth"]
    assert log.path.read_text().startswith("fifth")
    assert older(log, 1).startswith("third")
    assert older(log, 2).startswith("first")
    assert b"\0" not in log.path.read_bytes()


def test_only_so_many_old_logs_are_kept(log: LogFile, descriptor: int) -> None:
    for number in range(5):
        os.write(descriptor, f"{number}".encode() * 1001)
        assert log.rotate_if_large()
    assert [older(log, number)[0] for number in (1, 2)] == ["4", "3"]
    assert sorted(path.name for path in log.path.parent.iterdir()) == [
        "engine.log",
        "engine.log.1",
        "engine.log.2",
    ]


def test_old_logs_are_as_closed_to_others_as_the_log_is(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"x" * 1001)
    log.rotate_if_large()
    modes = {path.stat().st_mode & 0o777 for path in log.path.parent.iterdir()}
    assert not any(mode & 0o007 for mode in modes)


def test_without_old_logs_a_large_one_is_emptied(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "engine.log", max_bytes=10, keep=0)
    log.path.write_text("x" * 11)
    assert log.rotate_if_large()
    assert log.size() == 0
    assert list(tmp_path.iterdir()) == [log.path]


def test_a_small_log_is_left_alone(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"x" * 1000)
    assert not log.rotate_if_large()
    assert log.size() == 1000


def test_an_old_log_that_cannot_be_kept_does_not_stop_the_rotation(log: LogFile, descriptor: int) -> None:
    log.path.with_name("engine.log.1").mkdir()
    log.path.with_name("engine.log.2").write_text("in the way of the directory")
    os.write(descriptor, b"x" * 1001)
    assert log.rotate_if_large()
    assert log.size() == 0


def test_a_log_that_is_gone_is_not_rotated(log: LogFile) -> None:
    assert not log.rotate_if_large()
    assert log.tail(10) == []
    assert list(log.follow().new_lines()) == []


def test_following_begins_at_the_end(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"before\n")
    follower = log.follow()
    os.write(descriptor, b"after\n")
    assert list(follower.new_lines()) == ["after"]
    assert list(follower.new_lines()) == []


def test_a_line_is_told_when_it_is_complete(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    os.write(descriptor, b"first\nsec")
    assert list(follower.new_lines()) == ["first"]
    os.write(descriptor, b"ond\n")
    assert list(follower.new_lines()) == ["second"]


def test_a_character_cut_in_two_is_put_together(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    left, right = "ü\n".encode()[:1], "ü\n".encode()[1:]
    os.write(descriptor, left)
    assert list(follower.new_lines()) == []
    os.write(descriptor, right)
    assert list(follower.new_lines()) == ["ü"]


def test_following_goes_on_after_a_truncation(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    os.write(descriptor, b"before\nhalf a li")
    assert list(follower.new_lines()) == ["before"]
    os.truncate(log.path, 0)
    os.write(descriptor, b"after\n")
    assert list(follower.new_lines()) == ["after"]


def test_carriage_returns_end_lines_too(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    os.write(descriptor, b"10%\r20%\r30%\r\ndone\n")
    assert list(follower.new_lines()) == ["10%", "20%", "30%", "done"]
    assert log.tail(3) == ["20%", "30%", "done"]


def test_the_rest_of_a_huge_line_is_dropped(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    for _ in range(5):
        os.write(descriptor, b"x" * LONGEST_LINE)
        assert list(follower.new_lines()) == []
    os.write(descriptor, b"\nnext\n")
    assert list(follower.new_lines()) == ["x" * LONGEST_LINE, "next"]


def test_of_a_flood_only_the_end_is_read(log: LogFile, descriptor: int) -> None:
    follower = log.follow()
    line = b"a line of a flood\n"
    os.write(descriptor, line * (3 * READ_AT_ONCE // len(line)))
    os.write(descriptor, b"the last\n")
    seen = list(follower.new_lines())
    assert seen[-1] == "the last"
    assert sum(map(len, seen)) < READ_AT_ONCE
    assert list(follower.new_lines()) == []


def test_bytes_that_are_no_text_are_shown_as_such(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"a\xffb\n")
    assert log.tail(1) == ["a\ufffdb"]


def test_a_tail_begins_where_the_start_began(log: LogFile, descriptor: int) -> None:
    os.write(descriptor, b"of an earlier start\n")
    since = log.size()
    os.write(descriptor, b"of this start\n")
    assert log.tail(10, since) == ["of this start"]
    os.truncate(log.path, 0)
    os.write(descriptor, b"rotated\n")
    assert log.tail(10, since) == ["rotated"]


@pytest.mark.parametrize("in_the_way", ["logs", "logs/engine.log/"])
def test_a_log_that_cannot_be_written_is_told_with_a_hint(log: LogFile, in_the_way: str) -> None:
    path = log.path.parents[1] / in_the_way
    if in_the_way.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.write_text("a file where the directory should be")
    with pytest.raises(UnavailableError, match="cannot write the log file") as caught:
        log.open()
    assert caught.value.problems[0].hint


def test_the_descriptor_is_not_passed_on_by_accident(descriptor: int) -> None:
    assert not os.get_inheritable(descriptor)
