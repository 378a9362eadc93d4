"""What the kernel's files tell of processes killed for want of memory, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from memoria.engine.process.watch import OomKills, oom_kills

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
    (tmp_path / "vmstat").write_text("nr_free_pages 17\noom_kill 4\n")
    counted = oom_kills(tmp_path / "cgroup", tmp_path / "mount", tmp_path / "vmstat")
    assert counted == OomKills(cgroup=found, machine=4)


def test_without_the_kernels_files_nothing_is_known(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "none", tmp_path, tmp_path / "none") == OomKills(None, None)


@pytest.mark.parametrize(
    ("before", "now", "hit"),
    [
        (OomKills(2, 5), OomKills(3, 6), True),
        (OomKills(2, None), OomKills(3, None), True),
        (OomKills(2, 5), OomKills(2, 5), False),
        (OomKills(None, 5), OomKills(None, 5), False),
        (OomKills(2, None), OomKills(2, None), False),
        (OomKills(2, 5), OomKills(2, 6), None),
        (OomKills(None, 5), OomKills(None, 6), None),
        (OomKills(None, None), OomKills(None, None), None),
        (OomKills(2, None), OomKills(None, 5), None),
    ],
)
def test_only_a_counter_that_moved_or_stood_proves_anything(
    before: OomKills, now: OomKills, hit: bool | None
) -> None:
    """The machine's counter moves for a neighbour's process, too."""
    assert now.hit_since(before) is hit
