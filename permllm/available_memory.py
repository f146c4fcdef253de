"""How much memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory a container may use."""

MEMBERSHIP = Path("/proc/self/cgroup")
"""Where it says to which control groups this process belongs."""

VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Of control groups: the files of limit and use, and what of the use makes room."""

NO_LIMIT = 2**60
"""Version 1 has a number even where there is no limit."""


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, its container and its limit."""
    limits = [psutil.virtual_memory().available]
    membership = MEMBERSHIP.read_text() if MEMBERSHIP.is_file() else ""
    if (container := container_memory(CGROUP, membership)) is not None:
        limits.append(container)
    if resource is not None:
        address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
        if address_space != resource.RLIM_INFINITY:
            limits.append(address_space - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def container_memory(cgroup: Path, membership: str = "") -> int | None:
    """Bytes left of the memory that Linux gives the process's control group; None without a limit.

    Args:
        cgroup: where control groups are mounted, of version 2 or 1.
        membership: the text of ``/proc/self/cgroup``. Limits of the group itself and of those
            around it count; a container sees its own as the outermost.
    """
    limits = [
        left
        for root, group, files in _groups(cgroup, membership)
        for folder in (group, *group.parents)
        if folder.is_relative_to(root) and (left := _left(folder, files)) is not None
    ]
    return min(limits, default=None)


def _groups(cgroup: Path, membership: str) -> Iterator[tuple[Path, Path, tuple[str, str, str]]]:
    """The root of each version's groups, the process's own group, and how its files are called."""
    paths = {"": "/", "memory": "/"}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    for root, path, files in (
        (cgroup, paths[""], VERSION_2),
        (cgroup / "memory", paths["memory"], VERSION_1),
    ):
        yield root, root / path.lstrip("/"), files


def _left(group: Path, files: tuple[str, str, str]) -> int | None:
    """Bytes left of one control group."""
    try:
        limit, used = ((group / name).read_text().strip() for name in files[:2])
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit == "max" or int(limit) >= NO_LIMIT:
            return None
        # Cached files count as used, but make room when memory is asked for.
        return int(limit) - int(used) + int(statistics.get(files[2], 0))
    except (OSError, ValueError):
        return None
