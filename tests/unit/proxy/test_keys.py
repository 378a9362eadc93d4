from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memoria.errors import ConfigError
from memoria.proxy.access.keys import KeyRing
from tests.fakes import until

CHAT = "a" * 32
BATCH = "YmF0Y2g6a2V5PT0="  # base64 has the separators' characters in it


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", f"\n# who may ask\nchat: {CHAT}\n  batch={BATCH}  \n")


def test_a_key_is_found_by_what_is_presented(file: Path) -> None:
    ring = KeyRing(file)
    assert ring.names == {"chat", "batch"}
    assert ring.find(CHAT.encode()) == "chat"
    assert ring.find(BATCH.encode()) == "batch"


@pytest.mark.parametrize(
    "presented", [b"", b"a", CHAT[:-1].encode(), CHAT.encode() + b"a", b"\xff\x00", b"chat"]
)
def test_what_is_no_key_is_nobody(file: Path, presented: bytes) -> None:
    assert KeyRing(file).find(presented) is None


def test_a_name_may_have_two_keys_while_one_replaces_the_other(tmp_path: Path) -> None:
    ring = KeyRing(write(tmp_path / "keys", f"chat: {CHAT}\nchat: {BATCH}\n"))
    assert ring.find(CHAT.encode()) == ring.find(BATCH.encode()) == "chat"


def test_every_wrong_line_is_told_with_its_number_and_without_its_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "keys", f"no separator here\nchat: {CHAT}\ncopy: {CHAT}\nc: canary-short\nd: a canary b\n"
    )
    with pytest.raises(ConfigError) as caught:
        KeyRing(path)
    told = [(problem.what, problem.where) for problem in caught.value.problems]
    assert told == [
        ("this line is not `name: key`", (f"{path}:1",)),
        ("`copy` and `chat` have the same key", (f"{path}:3",)),
        ("the key of `c` is shorter than 16 characters", (f"{path}:4",)),
        ("this line is not `name: key`", (f"{path}:5",)),
    ]
    assert CHAT not in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n# chat: later\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="no API key in"):
        KeyRing(write(tmp_path / "keys", text))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the API key file .*No such file"):
        KeyRing(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read the API key file"):
        KeyRing(tmp_path)
    (tmp_path / "latin").write_bytes(b"chat: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        KeyRing(tmp_path / "latin")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """Opening a pipe would wait for whoever writes to it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="not a regular file"):
            KeyRing(path)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_keys_that_others_may_read_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    KeyRing(write(tmp_path / "keys", f"chat: {CHAT}", mode))
    assert ("chmod 600" in caplog.text) is warned


def at_once(file: Path) -> KeyRing:
    """Without a wait for a writer."""
    return KeyRing(file, settled=0, unfinished=0)


def refresh(ring: KeyRing) -> None:
    asyncio.run(ring.refresh())


def test_a_changed_file_is_read_again(file: Path) -> None:
    ring = at_once(file)
    write(file, f"new: {'n' * 16}\n")
    refresh(ring)
    assert ring.names == {"new"}
    assert ring.find(CHAT.encode()) is None


def test_a_file_that_another_takes_the_place_of_is_read_again(file: Path) -> None:
    ring = at_once(file)
    before = file.stat()
    replacement = write(file.with_name("other"), file.read_text(encoding="utf-8").replace("chat", "talk"))
    os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
    replacement.replace(file)
    refresh(ring)
    assert ring.names == {"talk", "batch"}


def test_a_wrong_file_leaves_the_keys_as_they_were_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = at_once(file)
    write(file, "")
    refresh(ring)
    refresh(ring)
    file.unlink()
    refresh(ring)
    refresh(ring)
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2
    assert ring.find(CHAT.encode()) == "chat"
    write(file, f"back: {BATCH}\n")
    refresh(ring)
    assert ring.names == {"back"}


def test_a_file_that_is_being_written_is_not_taken(file: Path) -> None:
    """Half a key is as long as a key may be, and whoever has read it would have access."""
    ring = KeyRing(file, settled=0, unfinished=60)
    half, rest = f"late: {'n' * 20}", "m" * 20
    with file.open("w") as writer:
        writer.write(half)
        writer.flush()
        refresh(ring)
        assert ring.find(b"n" * 20) is None
        assert ring.names == {"chat", "batch"}
        writer.write(f"{rest}\n")
    refresh(ring)
    assert ring.names == {"late"}
    assert ring.find(b"n" * 20 + rest.encode()) == "late"


def test_a_file_that_still_changes_is_not_taken(file: Path) -> None:
    ring = KeyRing(file, settled=60, unfinished=60)
    write(file, f"new: {'n' * 16}\n")
    refresh(ring)
    refresh(ring)
    assert ring.names == {"chat", "batch"}


def test_a_last_line_without_an_end_is_taken_later(file: Path) -> None:
    ring = KeyRing(file, settled=0, unfinished=0.01)
    write(file, f"new: {'n' * 16}")
    refresh(ring)
    while ring.names != {"new"}:  # ended by the test's own timeout
        refresh(ring)


def test_a_file_that_is_renamed_into_place_is_taken_at_once(file: Path) -> None:
    ring = KeyRing(file, settled=60, unfinished=60)
    draft = write(file.with_name("draft"), f"new: {'n' * 16}\n")
    os.utime(draft, (1, 1))  # as written a while before its renaming
    draft.replace(file)
    refresh(ring)
    assert ring.names == {"new"}


def test_a_file_of_another_inode_may_be_half_written_too(file: Path) -> None:
    ring = KeyRing(file, settled=60, unfinished=60)
    kept = file.with_name("kept")
    file.rename(kept)  # so that its inode is not used again
    file.write_text(f"new: {'n' * 16}\n", encoding="utf-8")
    refresh(ring)
    assert ring.names == {"chat", "batch"}


async def test_a_watched_file_needs_no_call(file: Path) -> None:
    ring = at_once(file)
    watching = asyncio.create_task(ring.watch(0.001))
    write(file, f"new: {'n' * 16}\n")
    await until(lambda: ring.names == {"new"})
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_file_system_that_does_not_answer_holds_up_nobody(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop goes on while the look at the file hangs, and what it finds counts afterwards."""
    ring, looked, answers = at_once(file), threading.Event(), threading.Event()
    write(file, f"new: {'n' * 16}\n")
    stat = Path.stat

    def hanging(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        looked.set()
        answers.wait(10)
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", hanging)
    watching = asyncio.create_task(ring.watch(0.001))
    await until(looked.is_set)
    assert ring.names == {"chat", "batch"}
    answers.set()
    await until(lambda: ring.names == {"new"})
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_file_that_becomes_a_pipe_leaves_the_keys_as_they_were(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = at_once(file)
    os.unlink(file)  # noqa: PTH108
    os.mkfifo(file)
    watching = asyncio.create_task(ring.watch(0.001))
    await until(lambda: "keeping the previous API keys" in caplog.text)
    assert ring.names == {"chat", "batch"}
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_nothing_shows_a_key(file: Path) -> None:
    ring = at_once(file)
    assert CHAT not in repr(ring) + repr(vars(ring))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary() | st.text().map(str.encode))
def test_any_file_is_keys_or_is_told_what_is_wrong(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(text)
    with suppress(ConfigError):
        assert KeyRing(path).names
