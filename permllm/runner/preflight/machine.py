"""The machine that a plan runs on: how fast it computes, and how much memory is free there."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import attrs
import torch

from permllm.available_memory import available_memory
from permllm.core.precision import has_bfloat16
from permllm.errors import UserError, nearest
from permllm.models.devices import free_memory

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
        processes: how many of its like share the work, each with a device of its own.
        network: bytes per second between them.
        neighbours: how many of them have their own memory in common, this one included.
    """

    name: str
    speed: float
    bfloat16: bool = False
    host: int | None = None
    device: int | None = None
    link: float = math.inf
    processes: int = 1
    network: float = math.inf
    neighbours: int = 1

    @property
    def free(self) -> int:
        """Bytes that are free for a process where it computes, as far as is known."""
        if self.device is not None:
            return self.device
        return 2**63 if self.host is None else self.host // self.neighbours


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
