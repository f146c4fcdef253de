"""The linears of a decoder, the groups that they form, and views of their weights.

Whatever a model calls them, the rest of permllm sees every linear as a matrix
``[C_out, C_in]``: the weight of an ``nn.Linear``, the transposed weight of a
transformers ``Conv1D``, or one expert's slice of a 3-D parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn


@attrs.frozen
class Linear:
    """One linear map of a decoder layer.

    Attributes:
        name: its full module name, such as ``model.layers.0.self_attn.q_proj``; for an
            expert's slice the parameter's name with the index, such as
            ``model.layers.0.mlp.experts.down_proj[3]``.
        layer: index of the decoder layer.
        parameter: name of its weight within the layer.
        index: the expert, where the parameter is 3-D; else None.
        transposed: whether the weight is stored as ``[C_in, C_out]``.
        c_out, c_in: output and input channels.
    """

    name: str
    layer: int
    parameter: str
    index: int | None
    transposed: bool
    c_out: int
    c_in: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(C_out, C_in)``."""
        return self.c_out, self.c_in

    def view(self, parameter: Tensor) -> Tensor:
        """The matrix ``[C_out, C_in]`` within the parameter, without a copy."""
        matrix = parameter if self.index is None else parameter[self.index]
        return matrix.T if self.transposed else matrix

    def stored(self, weight: Tensor) -> Tensor:
        """A matrix ``[C_out, C_in]`` in the orientation of the parameter."""
        return weight.T if self.transposed else weight


@attrs.frozen
class Group:
    """Linears of one layer that read the same tensor, so that they share an order.

    Attributes:
        name: the layer's name and the names of the linears within it.
        layer: index of the decoder layer.
        linears: their full names, in order of execution.
        channels: the channels of the tensor: everyone's ``C_in``.
    """

    name: str
    layer: int
    linears: tuple[str, ...]
    channels: int


def replaced_parameters(
    parameters: Mapping[str, Tensor],
    linears: Sequence[Linear],
    weights: Mapping[str, Tensor],
    place: Callable[[Tensor, Tensor], Tensor] = Tensor.to,
) -> dict[str, Tensor]:
    """The parameters of a layer that change when some linears get other weights.

    Args:
        parameters: the layer's, by name within the layer.
        linears: all linears of the layer.
        weights: ``[C_out, C_in]`` by linear; names of other layers are ignored. Gradients flow
            back to them.
        place: a tensor as it is computed with in place of a parameter: on that one's device and
            in its dtype, if nothing else is said.

    Returns:
        new tensors by parameter name, in the parameters' shapes.
    """
    slices: dict[str, list[Linear]] = {}
    replaced = {}
    for linear in linears:
        old = parameters[linear.parameter]
        if linear.index is not None:
            slices.setdefault(linear.parameter, []).append(linear)
        elif linear.name in weights:
            replaced[linear.parameter] = linear.stored(place(weights[linear.name], old))
    for name, experts in slices.items():
        if any(expert.name in weights for expert in experts):
            replaced[name] = _stacked(parameters[name], experts, weights, place)
    return replaced


def biases(layer: nn.Module, linear: Linear) -> list[str]:
    """The parameters that hold one number for each row of a linear, by name in the layer.

    These are the 1-D parameters of its module, and for an expert the slice of a 2-D one; of
    several those that are called after the weight.
    """
    where, _, own = linear.parameter.rpartition(".")
    module = layer.get_submodule(where)
    weight = getattr(module, own)
    shape = (linear.c_out,) if linear.index is None else (weight.shape[0], linear.c_out)
    names = [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if name != own and tuple(parameter.shape) == shape
    ]
    named = [name for name in names if name.startswith(own)]
    return [f"{where}.{name}" if where else name for name in named or names]


def _stacked(
    old: Tensor,
    experts: Sequence[Linear],
    weights: Mapping[str, Tensor],
    place: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """A 3-D parameter with some of its slices replaced."""
    given = {one.index: one.stored(weights[one.name]) for one in experts if one.name in weights}
    slices = (given.get(index, kept) for index, kept in enumerate(old.detach()))
    return torch.stack([place(each, old) for each in slices])
