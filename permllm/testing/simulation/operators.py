"""What PyTorch's operators do on two devices: the mode below autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from permllm.testing.simulation.ledger import Ledger, storages_of, tensors_in
from permllm.testing.simulation.rules import COPIES, INDEXING, may_mix, waits


class Operators(TorchDispatchMode):
    """Sees every operator, in backward passes, too: refuses mixed operands and places results.

    Args:
        device: the device.
    """

    def __init__(self, device: Ledger) -> None:
        super().__init__()
        self.simulated = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator on the CPU."""
        kwargs = kwargs or {}
        device, name = self.simulated, func._schema.name
        # Inside, tensors are what they really are.
        with device.lock, torch._C.DisableTorchFunction():
            operands = list(tensors_in((args, kwargs)))
            device.operations += 1
            there = [one for one in operands if device.holds(one)]
            if there:
                device.check_stream(there)
                mixed = any(not one.is_meta for one in operands if not device.holds(one))
                if mixed and not may_mix(name, args, operands, device.holds):
                    device.refuse(
                        "Expected all tensors to be on the same device, but found at least two "
                        f"devices, cuda:0 and cpu: {name} of {device.described(operands)}"
                    )
                self._count(name, args)
            here, before = device.makes_here(operands), storages_of(operands)
            results = func(*args, **kwargs)
            if here:
                device.claim(results, before)
        return results

    def _count(self, name: str, args: Sequence[Any]) -> None:
        """Count what an operator copies and whether the host waits for it."""
        device = self.simulated
        if waits(name, args):
            device.synchronisations += 1
        if name in COPIES and device.holds(args[0]) != device.holds(args[1]):
            to_device = device.holds(args[0])
            device.note_copy(args[0 if to_device else 1], to_device=to_device)
        if name in INDEXING:
            for index in args[1]:
                if isinstance(index, Tensor) and not device.holds(index):
                    device.note_copy(index, to_device=True)
