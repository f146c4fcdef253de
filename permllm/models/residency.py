"""Where the parameters of a model are while it computes.

Every parameter has a home: the memory-mapped tensor of its safetensors file, as transformers
leaves it, or one that was handed over. To compute, a module's parameters are copied to the
device, widened to the type of the computation, and the copies are dropped afterwards. Nothing
is ever written back, so a model takes no more memory than what computes at the moment, and what
is fetched meanwhile to compute next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from permllm.models.devices import free_memory
from permllm.models.fetching import Fetch, fetch

ROOM = 8
"""How many times what is fetched ahead has to be free on the device: a learning step computes with
about 16 bytes for each weight, of which a copy has two to four."""


class Residency:
    """The homes of a model's parameters, and the copies that are away from home.

    Args:
        model: the model.
        layers: its decoder layers.
        dtype: what it computes in, where that is wider than the type of a parameter.

    Attributes:
        device: where it computes.
        opened_as: the type that its parameters had.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], dtype: torch.dtype | None = None
    ) -> None:
        self.layers, self.dtype = list(layers), dtype
        first = next(model.parameters())
        self.device, self.opened_as = first.device, first.dtype
        inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
        self._around = {one for one in model.parameters() if id(one) not in inside}
        self._model = model
        self._staying: set[nn.Parameter] = set()
        self._homes: dict[nn.Parameter, Tensor] = {}
        self._ahead: tuple[nn.Module, Fetch[nn.Parameter]] | None = None
        self._side = _side_stream(self.device)

    def home(self, parameter: nn.Parameter) -> Tensor:
        """A parameter's tensor at home."""
        return self._homes.get(parameter, parameter.data)

    def visit(
        self, tensor: Tensor, parameter: Tensor | None = None, *, non_blocking: bool = False
    ) -> Tensor:
        """A tensor as it is computed with, by itself or in place of a parameter.

        Args:
            tensor: it.
            parameter: the one that it stands for.
            non_blocking: whether this may return before a device has it from pinned memory.
        """
        wanted = self._type_of(tensor if parameter is None else parameter)
        # PyTorch would widen it before it copies, which then is twice as much.
        narrow = min(tensor.dtype, wanted, key=lambda dtype: dtype.itemsize)
        return tensor.to(self.device, narrow, non_blocking=non_blocking).to(wanted)

    def widened(self, tensor: Tensor, parameter: Tensor | None = None) -> Tensor:
        """A tensor where it is, or a parameter at home, in the type to compute with."""
        home = tensor if parameter is None else parameter
        return tensor.to(home.device, self._type_of(home))

    def copied_bytes(self, layers: Iterable[int], device: torch.device) -> int:
        """What copies of some layers take on a device; nothing where they compute at home."""
        parameters = {one for index in layers for one in self.layers[index].parameters()}
        return sum(
            one.numel() * self._type_of(self.home(one)).itemsize
            for one in parameters
            if self._differs(self.home(one), device)
        )

    def visits(self, layers: Iterable[int]) -> bool:
        """Whether some layers are copied each time that they run."""
        parameters = {one for index in layers for one in self.layers[index].parameters()}
        return any(self._differs(self.home(one), self.device) for one in parameters - self._staying)

    def staying_bytes(self, device: torch.device) -> int:
        """What the copies of layers that stay on a device take there."""
        copies = self._homes.keys() - self._around if device == self.device else ()
        return sum(parameter.data.nbytes for parameter in copies)

    def place(self, device: torch.device, layers: Iterable[int]) -> None:
        """Have some layers, and all that is around the layers, compute on a device.

        Other layers are at home, and visit the device when they run.

        Args:
            device: where to compute from now on.
            layers: indices of those that stay there.
        """
        self.drop_ahead()
        wanted = {one for index in layers for one in self.layers[index].parameters()}
        wanted.update(self._around)
        leaving = self._staying if device != self.device else self._staying - wanted
        for parameter in leaving:
            self._send_home(parameter)
        if device != self.device:
            self._side = _side_stream(device)
        self.device, self._staying = device, wanted
        for parameter in wanted - self._homes.keys():
            self._bring(parameter)
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, self.visit(buffer))

    def replace(self, parameter: nn.Parameter, home: Tensor) -> Tensor:
        """Give a parameter another home; what it had."""
        self.drop_ahead()
        before = self.home(parameter)
        self._send_home(parameter)
        parameter.data = home
        if parameter in self._staying:
            self._bring(parameter)
        return before

    @contextmanager
    def visiting(self, layer: nn.Module, then: nn.Module | None = None) -> Iterator[None]:
        """Have a layer compute on the device for the block, and be at home again after it.

        Args:
            layer: the layer.
            then: the one that visits next. Its copies are made in a thread meanwhile, where they
                go from the host to a device that has room for many such.
        """
        brought = [one for one in layer.parameters() if one not in self._staying]
        try:
            fetched = self._fetched(layer)
            for parameter in brought:
                self._bring(parameter, fetched.pop(parameter, None))
            if then is not None:
                self._fetch(then)
            yield
        finally:
            for parameter in brought:
                self._send_home(parameter)

    def drop_ahead(self) -> None:
        """Let go of what was fetched for a layer that does not visit next after all."""
        if self._ahead is not None:
            self._ahead[1].drop()
            self._ahead = None

    def _fetch(self, layer: nn.Module) -> None:
        """Have a thread copy what a layer will compute with from the host, if there is room."""
        self.drop_ahead()
        if self._side is None:
            return
        here = self._staying | self._homes.keys()
        homes = {
            one: one.data
            for one in layer.parameters()
            if one not in here and one.data.device.type == "cpu"
        }
        size = sum(home.numel() * self._type_of(home).itemsize for home in homes.values())
        if homes and ROOM * size <= free_memory(self.device):
            copy = partial(self.visit, non_blocking=True)
            self._ahead = layer, fetch(homes, copy, self._side)

    def _fetched(self, layer: nn.Module) -> dict[nn.Parameter, Tensor]:
        """What was fetched of a layer, which is taken; of another one it is dropped."""
        if self._ahead is None or self._ahead[0] is not layer:
            self.drop_ahead()
            return {}
        taken = self._ahead[1].take()
        self._ahead = None
        return taken

    def _type_of(self, tensor: Tensor) -> torch.dtype:
        if self.dtype is None or not tensor.is_floating_point():
            return tensor.dtype
        return max(tensor.dtype, self.dtype, key=lambda dtype: dtype.itemsize)

    def _differs(self, home: Tensor, device: torch.device) -> bool:
        return home.device != device or home.dtype != self._type_of(home)

    def _bring(self, parameter: nn.Parameter, copied: Tensor | None = None) -> None:
        home = parameter.data
        if self._differs(home, self.device):
            parameter.data = self.visit(home) if copied is None else copied
            self._homes[parameter] = home

    def _send_home(self, parameter: nn.Parameter) -> None:
        if parameter in self._homes:
            parameter.data = self._homes.pop(parameter)


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """What copies go over beside the computation, where a device has such."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None
