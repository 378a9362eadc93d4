"""What the kernel's files tell of processes killed for want of memory, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoria.engine.process.watch import oom_kills

EVENTS = "low 0\nhigh 3\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"


@pytest.mark.parametrize(
    ("cgroup", "file", "content", "found"),
    [
        ("0::/system.slice/memoria.service", "system.slice/memoria.service/memory.events", EVENTS, 2),
        ("0::/", "memory.events", EVENTS, 2),
        ("9:cpu:/\n4:memory:/box\n0::/", "memory/box/memory.oom_control", CONTROL, 5),
        ("4:memory:/box/seen/from/outside", "memory/memory.oom_control", CONTROL, 5),
        ("0::/x", "x/memory.events", "oom_kill many\n", None),
        ("0::/x", "y/memory.events", EVENTS, None),
        ("nonsense", "memory.events", EVENTS, None),
    ],
    ids=["service", "container", "v1", "v1-container", "damaged", "elsewhere", "nonsense"],
)
def test_kills_are_counted_where_the_kernel_counts_them(
    tmp_path: Path, cgroup: str, file: str, content: str, found: int | None
) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mount" / file).parent.mkdir(parents=True)
    (tmp_path / "mount" / file).write_text(content)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "mount") == found


def test_without_cgroups_nothing_is_known(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "none", tmp_path) is None
