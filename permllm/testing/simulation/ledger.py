"""Which storages are on the simulated device, and what was copied there and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, local
from typing import Any, NoReturn

import attrs
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class DeviceFault(RuntimeError):
    """Something that CUDA would refuse, such as operands of two devices."""


@attrs.define(eq=False)
class SimulatedDevice:
    """A device beside the host; make one with :func:`permllm.testing.device.simulated_device`.

    Attributes:
        limit: bytes that may be there at once, or None.
        device: how PyTorch calls it.
        copied_to_device, copied_to_host: bytes, as wide as they are on the device, since
            PyTorch converts on the host.
        synchronisations: how often the host waited for the device, in order to read from it.
        operations: operators that ran, on either.
        peak_bytes: the most that the storages on it took at once.
        reserved_bytes: the most since ``torch.cuda.empty_cache``, which PyTorch keeps for itself.
        recent_peak_bytes: the most since ``torch.cuda.reset_peak_memory_stats``.
        faults: every :class:`DeviceFault` that was raised, in case one was caught.
    """

    limit: int | None = None
    device: torch.device = attrs.field(factory=lambda: torch.device("cuda"), init=False)
    copied_to_device: int = attrs.field(default=0, init=False)
    copied_to_host: int = attrs.field(default=0, init=False)
    synchronisations: int = attrs.field(default=0, init=False)
    operations: int = attrs.field(default=0, init=False)
    faults: list[str] = attrs.field(factory=list, init=False)
    peak_bytes: int = attrs.field(default=0, init=False)
    reserved_bytes: int = attrs.field(default=0, init=False)
    recent_peak_bytes: int = attrs.field(default=0, init=False)
    _storages: dict[int, tuple[StorageWeakRef, int]] = attrs.field(factory=dict, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    # Threads share the device.
    _lock: Any = attrs.field(factory=RLock, init=False, repr=False)

    @property
    def live_bytes(self) -> int:
        """What the storages on it take that are in use."""
        self._forget_dead()
        return self._bytes

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on it."""
        # One that is vectorised has no storage of its own.
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return _has_storage(tensor) and _key(tensor) in self._storages

    def _forget_dead(self) -> None:
        with self._lock:
            dead = [key for key, (storage, _) in self._storages.items() if storage.expired()]
            self._bytes -= sum(self._storages.pop(key)[1] for key in dead)


class _Call(local):
    """What holds for the running call of a thread.

    Attributes:
        told: whether its new tensors are on the device, if anybody said; else they are where
            its operands are.
        operands: whether they are there where there are none.
        stream: that does its work.
    """

    told: bool | None = None
    operands: bool = False
    stream: int = 0


@attrs.define(eq=False)
class Ledger(SimulatedDevice):
    """What the modes write to: where tensors go, and what that takes.

    Attributes:
        streams: how many were made beside the one that computes.
    """

    streams: int = attrs.field(default=0, init=False)
    _call: _Call = attrs.field(factory=_Call, init=False)
    # By storage that another stream than the first has made: those that may hold it, and
    # whether it may not be there yet.
    _shared: dict[int, set[int]] = attrs.field(factory=dict, init=False)
    _unfinished: dict[int, int] = attrs.field(factory=dict, init=False)

    @property
    def lock(self) -> Any:
        """Held by a thread while its operator runs."""
        return self._lock

    @property
    def stream(self) -> int:
        """The stream that does the work of this thread."""
        return self._call.stream

    @contextmanager
    def streaming(self, stream: int) -> Iterator[None]:
        """Have a stream do the work of this thread in the block."""
        kept, self._call.stream = self._call.stream, stream
        try:
            yield
        finally:
            self._call.stream = kept

    def finish(self, stream: int) -> None:
        """Note that what a stream made is there for all."""
        with self._lock:
            self._unfinished = {key: by for key, by in self._unfinished.items() if by != stream}

    def share(self, tensor: Tensor, stream: int) -> None:
        """Note that a tensor's memory is not to be given away while a stream uses it."""
        self._shared.get(_key(tensor), set()).add(stream)

    def check_stream(self, operands: list[Tensor]) -> None:
        """Refuse what another stream made and this one may not use yet, or not safely.

        Raises:
            DeviceFault: this stream has not waited, or is not recorded.
        """
        for key in storages_of(operands) & self._shared.keys():
            if self._unfinished.get(key, self.stream) != self.stream:
                self.refuse("a stream reads what another one may not have made yet")
            if self.stream not in self._shared[key]:
                self.refuse("a stream reads what another one's memory may be given away under")

    def makes_here(self, operands: list[Tensor]) -> bool:
        """Whether what an operator makes of operands is on the device."""
        if self._call.told is not None:
            return self._call.told
        return any(map(self.holds, operands)) if operands else self._call.operands

    def claim(self, results: Any, before: set[int]) -> None:
        """Put what an operator made on the device.

        Args:
            results: of the operator.
            before: the storages of its operands, which stay where they are.

        Raises:
            OutOfMemoryError: there is no room.
        """
        for tensor in tensors_in(results):
            if _has_storage(tensor) and _key(tensor) not in before:
                self._claim(tensor)

    @contextmanager
    def placing(self, told: bool | None, operands: bool = False) -> Iterator[None]:
        """Where new tensors of the block are: on the device, on the host, or as their operands.

        Args:
            told: whether on the device, if anybody said.
            operands: whether on the device where nobody did and there are none.
        """
        call = self._call
        kept = call.told, call.operands
        call.told, call.operands = told, operands
        try:
            yield
        finally:
            call.told, call.operands = kept

    def refuse(self, message: str) -> NoReturn:
        """Raise a fault and note it."""
        self.faults.append(message)
        raise DeviceFault(message)

    def note_copy(self, device_side: Tensor, *, to_device: bool) -> None:
        """Count a copy; one to the host is waited for."""
        with self._lock:
            if to_device:
                self.copied_to_device += device_side.nbytes
            else:
                self.copied_to_host += device_side.nbytes
                self.synchronisations += 1

    def described(self, tensors: list[Tensor]) -> str:
        """Tensors with their places, for a message."""
        places = ("cuda:0" if self.holds(one) else "cpu" for one in tensors)
        shapes = (f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in tensors)
        return ", ".join(f"{shape} on {place}" for shape, place in zip(shapes, places, strict=True))

    def _claim(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        # Another storage may have had the key.
        self._shared.pop(key, None), self._unfinished.pop(key, None)
        # The dead take time to find: only where it matters.
        if self._bytes + size > self.recent_peak_bytes:
            self._forget_dead()
        if self.limit is not None and self._bytes + size > self.limit:
            raise torch.OutOfMemoryError(_full(size, self.limit, self._bytes))
        # The weak reference keeps the key from being given to another storage.
        self._storages[key] = StorageWeakRef(storage), size
        if self.stream:
            self._shared[key], self._unfinished[key] = {self.stream}, self.stream
        self._bytes += size
        self.recent_peak_bytes = max(self.recent_peak_bytes, self._bytes)
        self.reserved_bytes = max(self.reserved_bytes, self._bytes)
        self.peak_bytes = max(self.peak_bytes, self._bytes)


def storages_of(tensors: list[Tensor]) -> set[int]:
    """The storages of tensors."""
    return {_key(one) for one in tensors if _has_storage(one)}


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _full(size: int, limit: int, held: int) -> str:
    """What CUDA says, with bytes in place of larger units."""
    return (
        f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of "
        f"{limit} bytes of which {limit - held} bytes is free."
    )
