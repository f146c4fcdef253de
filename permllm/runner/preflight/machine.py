"""The machine that a plan runs on: how fast it computes, and how much memory is free there."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import psutil
import torch

from permllm.core.precision import has_bfloat16
from permllm.errors import UserError, nearest

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


EFFICIENCY = 0.6
"""Share of a plain matrix product's speed that a whole model reaches, about."""

UTILISATION = 0.4
"""Share of its peak that a model reaches on a GPU, about."""


@attrs.frozen
class Machine:
    """What an estimate wants to know of a machine.

    Attributes:
        name: its name.
        speed: floating-point operations per second that a model may reach.
        bfloat16: whether it multiplies bfloat16 natively.
        host: bytes of its own memory that are free; None where that is not known.
        device: bytes that are free on the device; None where the machine itself computes.
        link: bytes per second from its memory to the device.
    """

    name: str
    speed: float
    bfloat16: bool = False
    host: int | None = None
    device: int | None = None
    link: float = math.inf

    @property
    def free(self) -> int:
        """Bytes that are free where it computes, as far as is known."""
        known = self.host if self.device is None else self.device
        return 2**63 if known is None else known


def gpu(name: str, flops: float, memory: float, link: float) -> Machine:
    """A machine with a GPU of such a peak in bfloat16, bytes of memory and bytes per second."""
    return Machine(name, UTILISATION * flops, True, None, int(memory), link)


KNOWN = {
    one.name: one
    for one in (
        gpu("rtx4090", 165e12, 24e9, 25e9),
        gpu("a100", 312e12, 80e9, 25e9),
        gpu("h100", 989e12, 80e9, 50e9),
        gpu("h200", 989e12, 141e9, 50e9),
    )
}
"""GPUs by name: dense bfloat16 products and memory as their makers say, and the copies that PCIe of
their generation reaches."""

FIELDS = {"flops": 1e12, "memory": 1e9, "link": 1e9}
"""What a machine with a GPU may be described by, and the least that is no slip of the unit."""

LINK = 25e9
"""Bytes per second where a description says nothing of the link."""


def machine_named(text: str) -> Machine:
    """The machine of a name, or of a description such as ``flops=1e15,memory=80e9``.

    Raises:
        UserError: there is none of that name, or the description has other fields.
    """
    if text == "cpu":
        return this_machine(torch.device("cpu"))
    if "=" in text:
        pairs = (pair.partition("=") for pair in text.split(","))
        return _described({name.strip(): value.strip() for name, _, value in pairs})
    if text not in KNOWN:
        near = nearest(text, ("cpu", *KNOWN))
        raise UserError(
            f"no machine '{text}' is known, but cpu, {', '.join(KNOWN)} and descriptions such as "
            "flops=1e15,memory=80e9,link=50e9",
            hint=f"did you mean '{near}'?" if near else None,
        )
    return KNOWN[text]


def _described(given: Mapping[str, str]) -> Machine:
    for name in given:
        if name not in FIELDS:
            near = nearest(name, FIELDS)
            raise UserError(
                f"a machine is described by {', '.join(FIELDS)}, and not by '{name}'",
                hint=f"did you mean '{near}'?" if near else None,
            )
    flops, room = (_number(name, given.get(name, "missing")) for name in ("flops", "memory"))
    return gpu("that machine", flops, room, _number("link", given.get("link", str(LINK))))


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not FIELDS[name] <= number < math.inf:
        units = {"flops": "operations per second", "memory": "bytes", "link": "bytes per second"}
        raise UserError(
            f"a machine's {name} is a number of {units[name]}, at least {FIELDS[name]:g}, "
            f"such as {1000 * FIELDS[name]:g}; it is {text}"
        )
    return number


def this_machine(device: torch.device) -> Machine:
    """The machine that this process runs on, computing on a device."""
    own = None if device.type == "cpu" else free_memory(device)
    return Machine(
        device.type, measured_speed(device), has_bfloat16(device), available_memory(), own
    )


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; no limit is known of others than CUDA's."""
    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return 2**63


def measured_speed(device: torch.device, seconds: float = 0.3) -> float:
    """Floating-point operations per second that a model may reach on ``device``.

    Args:
        device: where the model will run.
        seconds: how long to measure.
    """
    size = 512 if device.type == "cpu" else 2048
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        # Reading one number waits for the device.
        (matrix @ matrix)[0, 0].item()
        # The fastest counts: the first is a warm-up, and others may be disturbed.
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return EFFICIENCY * best


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
