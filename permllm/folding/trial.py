"""Runs one decoder layer on chosen inputs, with other outputs of its linears or other weights.

How a layer is wired does not depend on its weights. So where only the wiring is asked for,
the outputs of all its linears are made up, and their weights need no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.models.calls import LayerCall, LayerCalls
from permllm.models.decoder import Decoder
from permllm.models.linears import Group, Linear, biases
from permllm.models.tracing import ProductWatch

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
"""What a layer raises that cannot be run in another precision, or on such inputs."""


@attrs.frozen(eq=False)
class LayerRun:
    """What a layer read and gave.

    Attributes:
        inputs: by group, what its linears read, ``[tokens, C_in]``; groups that no token
            reached are left out.
        output: the hidden states after the layer.
    """

    inputs: dict[str, Tensor]
    output: Tensor


Outputs = Callable[[str, Tensor], Tensor]
"""The made-up output ``[..., C_out]`` of a linear, by its name and its input."""


class LayerProbe:
    """One layer of a decoder, to be run in a precision of its own.

    Args:
        decoder: the model.
        index: the layer.
        dtype: in which the layer computes here; the model stays as it is.
        length: tokens of a sequence.
        hollow: True where only the wiring is asked for: the linears then have no weights
            and no biases.
    """

    def __init__(
        self, decoder: Decoder, index: int, dtype: torch.dtype, length: int, *, hollow: bool = False
    ) -> None:
        self.decoder, self.index = decoder, index
        self.linears = [linear for linear in decoder.linears.values() if linear.layer == index]
        self.groups = [group for group in decoder.groups.values() if group.layer == index]
        layer = decoder.layers[index]
        self.device = next(layer.parameters()).device
        self.dtype, self.length = dtype, length
        self._calls: dict[int, LayerCall] = {}
        self.hidden_size = self._embedded(1).hidden.shape[-1]
        matrices = {linear.parameter for linear in self.linears} if hollow else set()
        self.parameters = {
            name: _hollow(parameter, dtype) if name in matrices else self._cast(parameter.detach())
            for name, parameter in layer.named_parameters()
        }
        if hollow:
            # A bias that is added outside the product would tell rows apart.
            for name in {bias for linear in self.linears for bias in biases(layer, linear)}:
                self.parameters[name] = torch.zeros_like(self.parameters[name])
        self.buffers = {name: self._cast(buffer) for name, buffer in layer.named_buffers()}

    def hidden(self, batch: int, length: int, seed: int) -> Tensor:
        """Random hidden states ``[batch, length, H]`` of size 1."""
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(batch, length, self.hidden_size, generator=generator)
        return states.to(self.device, self.dtype)

    @torch.no_grad()
    def run(
        self,
        hidden: Tensor,
        *,
        outputs: Outputs | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> LayerRun:
        """Run the layer.

        Args:
            hidden: ``[b, L, H]``.
            outputs: makes up the output of every linear; the layer's own where it is None.
            parameters: some parameters of the layer, in place of its own.
        """
        used = {**self.parameters, **(parameters or {})}
        names = {_address(linear, used): linear.name for linear in self.linears}
        leaders = {group.linears[0]: group for group in self.groups}
        met: dict[str, list[Tensor]] = {}

        def meet(inputs: Tensor, weight: Tensor) -> Tensor | None:
            name = names.get(weight.data_ptr())
            if name in leaders:
                group = leaders[name]
                met.setdefault(group.name, []).append(inputs.reshape(-1, group.channels).clone())
            return None if name is None or outputs is None else outputs(name, inputs).clone()

        # Layers add to their tensors in place.
        args, kwargs = self._call(len(hidden)).with_hidden(hidden.clone())
        layer = self.decoder.layers[self.index]
        with ProductWatch(meet):
            output = torch.func.functional_call(layer, {**used, **self.buffers}, args, kwargs)
        if self.decoder.tuples[self.index] is not None:
            output = output[0]
        return LayerRun({name: torch.cat(parts) for name, parts in met.items()}, output)

    def _embedded(self, batch: int) -> LayerCalls:
        embeddings = self.decoder.model.get_input_embeddings()
        tokens = torch.arange(self.length, device=embeddings.weight.device)
        return self.decoder.embed((tokens % embeddings.num_embeddings).expand(batch, -1))

    def _call(self, batch: int) -> LayerCall:
        """The other arguments of the layer, which may be made for so many sequences."""
        if batch not in self._calls:
            call = self._embedded(batch).layers[self.index]
            self._calls[batch] = LayerCall(
                self._cast(call.args), self._cast(call.kwargs), call.positional
            )
        return self._calls[batch]

    def leaders(self) -> dict[int, Group]:
        """The groups by the address of their first linear's weight here."""
        first = {group.linears[0]: group for group in self.groups}
        return {
            _address(linear, self.parameters): first[linear.name]
            for linear in self.linears
            if linear.name in first
        }

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            dtype = self.dtype if value.is_floating_point() else value.dtype
            return value.to(self.device, dtype)
        if isinstance(value, dict):
            return {key: self._cast(entry) for key, entry in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._cast(entry) for entry in value)
        return value


def _hollow(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a parameter's shape that takes no memory; its slices have own addresses."""
    ones = [1] * (parameter.dim() - 1)
    first = parameter.shape[0] if parameter.dim() == 3 else 1
    return torch.zeros(first, *ones, dtype=dtype, device=parameter.device).expand(parameter.shape)


def _address(linear: Linear, parameters: Mapping[str, Tensor]) -> int:
    return linear.view(parameters[linear.parameter]).data_ptr()
