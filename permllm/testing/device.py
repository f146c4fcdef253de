"""A second device, simulated on the CPU: what is in the wrong place is found without CUDA.

A test runs its code within :func:`simulated_device`, on tensors that were moved to the device::

    from permllm.testing.device import simulated_device

    def test_placement():
        with simulated_device() as simulated:
            weight = torch.rand(8, 8).to(simulated.device)
            ...

All arithmetic happens on the CPU, with its bits. What is simulated is where tensors are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Thread
from unittest.mock import patch

from permllm.testing.simulation.functions import Functions
from permllm.testing.simulation.ledger import DeviceFault, Ledger, SimulatedDevice
from permllm.testing.simulation.operators import Operators
from permllm.testing.simulation.stand_ins import stand_ins

__all__ = ["DeviceFault", "SimulatedDevice", "simulated_device"]


@contextmanager
def simulated_device(limit: int | None = None) -> Iterator[SimulatedDevice]:
    """Have a device in the block that PyTorch calls ``cuda:0``, beside the host.

    What :class:`SimulatedDevice` counts may be read at any time. Tensors are where ``.to``,
    ``device=`` or the operands that they were computed from put them. As with CUDA, operators
    refuse operands of both devices, numpy what is not on the host, and random numbers a
    generator of the other device; ``torch.cuda`` answers for this device, and ``autocast`` of
    ``cuda`` rounds as that of the CPU. Threads that start in the block see it, too. Streams do
    their work at once; refused is what one of them uses that another made, unless that was waited
    for and recorded (``record_stream``). ``torch.compile``, sparse layouts and kernels of one's
    own are not simulated.

    Args:
        limit: bytes that tensors may take there at once; any number where it is None.

    Yields:
        what the device holds and what was copied; :class:`DeviceFault` is raised by what CUDA
        would refuse, and ``torch.OutOfMemoryError`` beyond the limit.
    """
    device = Ledger(limit)
    functions = Functions(device)
    seeing = patch.object(Thread, "run", _seeing(device, Thread.run))
    with stand_ins(device, functions), seeing, Operators(device), functions:
        yield device


def _seeing(device: Ledger, run: Callable[[Thread], None]) -> Callable[[Thread], None]:
    """What a thread runs, which sees the device by modes of its own."""

    @wraps(run)
    def seen(thread: Thread) -> None:
        with Operators(device), Functions(device):
            run(thread)

    return seen
