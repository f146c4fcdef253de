"""Where the input of a group can be put in another order at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from permllm.exhaustion import raise_if_out_of_memory
from permllm.folding.fold import reordered
from permllm.folding.trial import FAILURES, LayerProbe
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.models.tracing import ProductWatch, input_key

LENGTH = 4
"""Tokens of the sequence on which a gather is tried."""


def gather_points(
    decoder: Decoder, index: int, permutations: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...] | None]:
    """The modules at which the inputs of some groups of a layer can be gathered.

    One module is enough where its output is the tensor that all linears of the group read,
    and nothing else reads it: a norm, mostly. That is tried. Else it is each linear.

    Args:
        decoder: the model.
        index: the layer.
        permutations: ``LongTensor[C_in]`` by group.

    Returns:
        by group the full names of modules: one whose output is gathered, or the group's
        linears, whose inputs are. None where a linear is no module, but a slice of experts.
    """
    points: dict[str, tuple[str, ...] | None] = {}
    if not permutations:
        return points
    for name in permutations:
        group = decoder.groups[name]
        modules = all(decoder.linears[linear].index is None for linear in group.linears)
        points[name] = group.linears if modules else None
    for dtype in (torch.float64, torch.float32):
        try:
            return points | _single_points(LayerProbe(decoder, index, dtype, LENGTH), permutations)
        except FAILURES as error:
            raise_if_out_of_memory(error)
            continue
    # At each linear it is right in any case, only more often.
    return points


def _single_points(
    probe: LayerProbe, permutations: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """The one module, for groups that have one."""
    decoder = probe.decoder
    layer, title = decoder.layers[probe.index], decoder.layer_names[probe.index]
    hidden = probe.hidden(2, LENGTH, 0)
    makers, output = _makers(probe, hidden)
    points: dict[str, tuple[str, ...]] = {}
    for name, module in makers.items():
        if name not in permutations:
            continue
        moved = reordered(
            layer,
            probe.linears,
            probe.parameters,
            rows={},
            columns=dict.fromkeys(decoder.groups[name].linears, permutations[name]),
        )
        with gathered(layer.get_submodule(module), permutations[name].to(probe.device)):
            tried = probe.run(hidden, parameters=moved).output
        if same_output(output, tried):
            points[name] = (f"{title}.{module}",)
    return points


def _makers(probe: LayerProbe, hidden: Tensor) -> tuple[dict[str, str], Tensor]:
    """By group the module within the layer whose output its linears read; and the output."""
    layer = probe.decoder.layers[probe.index]
    made: dict[tuple[Any, ...], str] = {}
    groups: dict[int, Group] = probe.leaders()
    read: dict[str, list[tuple[Any, ...]]] = {}
    # Memory must not be used again while tensors are told apart by their addresses.
    alive: list[Tensor] = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                alive.append(output)
                # The innermost module comes first.
                made.setdefault(input_key(output), name)

        return record

    def watch(inputs: Tensor, weight: Tensor) -> None:
        group = groups.get(weight.data_ptr())
        if group is not None:
            alive.append(inputs)
            read.setdefault(group.name, []).append(input_key(inputs))

    handles = [
        module.register_forward_hook(hook(name)) for name, module in layer.named_modules() if name
    ]
    try:
        with ProductWatch(watch):
            output = probe.run(hidden).output
    finally:
        for handle in handles:
            handle.remove()
    single = {name: keys[0] for name, keys in read.items() if len(keys) == 1}
    return {name: made[key] for name, key in single.items() if key in made}, output


def at_inputs(at: tuple[str, ...], linears: tuple[str, ...]) -> bool:
    """Whether modules are gathered at their input, not at their output.

    Args:
        at: the modules at which the input of a group is gathered.
        linears: those of the group.
    """
    around = tuple(f"{module}." for module in at)
    return at == linears or linears[0].startswith(around)


@contextmanager
def gathered(module: nn.Module, permutation: Tensor, *, inputs: bool = False) -> Iterator[None]:
    """Put the channels that a module gives, or reads, in another order for the block."""
    if inputs:
        handle = module.register_forward_pre_hook(
            lambda module, args: (args[0][..., permutation], *args[1:])
        )
    else:
        handle = module.register_forward_hook(lambda module, args, output: output[..., permutation])
    try:
        yield
    finally:
        handle.remove()


def same_output(expected: Tensor, got: Tensor) -> bool:
    """Whether a layer gave the same but for rounding."""
    return float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
