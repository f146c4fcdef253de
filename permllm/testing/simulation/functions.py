"""What Python sees of tensors on two devices: the mode above autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from permllm.testing.simulation.ledger import Ledger, tensors_in

_FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""Make tensors of what is on the host, and then copy them."""


class Functions(TorchFunctionMode):
    """Sees every function of PyTorch that is called, and every attribute of a tensor.

    Args:
        device: the device.
    """

    def __init__(self, device: Ledger) -> None:
        super().__init__()
        self.simulated = device
        self.own: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: device.holds,  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor: not device.holds(tensor),  # type: ignore[attr-defined]
            Tensor.get_device: lambda tensor: 0 if device.holds(tensor) else -1,
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor: self._moved(tensor, None, False),
            Tensor.cuda: self._cuda,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._array,
            Tensor.tolist: self._tolist,
            Tensor.pin_memory: self._pinned,
        }

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function; within it the mode is off."""
        kwargs = dict(kwargs or {})
        if own := self.own.get(func):
            return own(*args, **kwargs)
        operands = any(map(self.simulated.holds, tensors_in((list(args), kwargs))))
        told = None
        if kwargs.get("device") is not None:
            told = self._is_here(kwargs["device"])
            if told is not None:
                kwargs["device"] = "cpu"
        self._check_generator(func, kwargs.get("generator"), operands if told is None else told)
        if func in _FROM_HOST:
            if told is None:
                told = func is not torch.tensor and operands
            with self.simulated.placing(None, operands):
                made = func(*args, **kwargs)
            return self._moved(made, None, told)
        with self.simulated.placing(told, operands):
            return func(*args, **kwargs)

    # --- where tensors are -------------------------------------------------------

    def _is_here(self, device: Any) -> bool | None:
        """Whether a device is the simulated one; None where it is neither that nor the host."""
        if isinstance(device, int):
            device = torch.device("cuda", device)
        device = torch.device(device)
        if device.type == "cuda" and device.index:
            self.simulated.refuse("CUDA error: invalid device ordinal")
        return {"cuda": True, "cpu": False}.get(device.type)

    def _device(self, tensor: Tensor) -> torch.device:
        return torch.device("cuda", 0) if self.simulated.holds(tensor) else tensor.device

    def _check_generator(self, func: Any, generator: Any, here: bool) -> None:
        expected = "cuda" if here else "cpu"
        if generator is not None and generator.device.type != expected:
            self.simulated.refuse(
                f"Expected a '{expected}' device type for generator but found "
                f"'{generator.device.type}': {getattr(func, '__name__', func)}"
            )

    # --- moving ------------------------------------------------------------------

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        flags = [one for one in args if isinstance(one, bool)]
        for one in (*args, kwargs.pop("other", None)):
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, Tensor):
                device, dtype = self._device(one), one.dtype
            elif one is not None and not isinstance(one, bool):
                device = one
        kwargs.pop("non_blocking", None)
        copy = kwargs.pop("copy", len(flags) > 1 and flags[1])
        here = self.simulated.holds(tensor) if device is None else self._is_here(device)
        if here is None or tensor.is_meta:
            return tensor.to(device, dtype, copy=copy, **kwargs)
        return self._moved(tensor, dtype, here, copy=copy, **kwargs)

    def _cuda(self, tensor: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
        return self._to(tensor, "cuda" if device is None else device)

    def _moved(
        self, tensor: Tensor, dtype: torch.dtype | None, here: bool, **options: Any
    ) -> Tensor:
        """A tensor in another type, on the device or on the host."""
        dtype = dtype or tensor.dtype
        if here == self.simulated.holds(tensor):
            with self.simulated.placing(here):
                return tensor.to(dtype, **options)
        if tensor.requires_grad and torch.is_grad_enabled():
            moved: Tensor = _Move.apply(tensor, dtype, here, self.simulated)
            return moved
        return _copied(tensor, dtype, here, self.simulated)

    # --- leaving PyTorch ---------------------------------------------------------

    def _numpy(self, tensor: Tensor, **options: Any) -> Any:
        self._refuse_if_here(tensor)
        return tensor.numpy(**options)

    def _array(self, tensor: Tensor, *args: Any, **options: Any) -> Any:
        self._refuse_if_here(tensor)
        return tensor.__array__(*args, **options)

    def _pinned(self, tensor: Tensor, device: Any = None) -> Tensor:
        if self.simulated.holds(tensor):
            self.simulated.refuse("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can")
        return tensor

    def _refuse_if_here(self, tensor: Tensor) -> None:
        if self.simulated.holds(tensor):
            self.simulated.refuse(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                f"tensor to host memory first: {self.simulated.described([tensor])}"
            )

    def _tolist(self, tensor: Tensor) -> Any:
        # No operator reads it.
        if self.simulated.holds(tensor):
            self.simulated.note_copy(tensor, to_device=False)
        return tensor.tolist()


class _Move(torch.autograd.Function):
    """A copy on the other device; the gradient goes back.

    PyTorch's own would leave it where it is, since for PyTorch there is one device only.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype, here: bool, device: Ledger) -> Tensor:
        ctx.back = tensor.dtype, not here, device
        return _copied(tensor, dtype, here, device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _copied(gradient, *ctx.back), None, None, None


def _copied(tensor: Tensor, dtype: torch.dtype, here: bool, device: Ledger) -> Tensor:
    with torch._C.DisableTorchFunction(), device.placing(here):
        moved = tensor.to(dtype, copy=True)
        device.note_copy(moved if here else tensor, to_device=here)
        return moved
