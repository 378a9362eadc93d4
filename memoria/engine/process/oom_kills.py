"""How often the kernel killed a process of memoria's cgroup, engines among them, to free memory.

cgroup v2: `oom_kill` in memory.events; v1: in memory.oom_control (Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst).
"""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def oom_kills(cgroup: Path = CGROUP, mount: Path = MOUNT) -> int | None:
    """Since the cgroup was made; None where the kernel does not say."""
    try:
        places = [line.split(":", 2) for line in cgroup.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    for _, controllers, path in (place for place in places if len(place) == 3):
        inside = path.lstrip("/")
        if controllers == "" and (found := _count(mount / inside / "memory.events")) is not None:
            return found
        if "memory" in controllers.split(","):
            for folder in (mount / "memory" / inside, mount / "memory"):
                if (found := _count(folder / "memory.oom_control")) is not None:
                    return found
    return None


def _count(file: Path) -> int | None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for name, _, value in (line.partition(" ") for line in lines):
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return None
