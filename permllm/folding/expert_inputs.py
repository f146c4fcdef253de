"""Where the experts of a layer read one tensor, whose channels they can share an order of.

Each expert gets rows of the hidden states that enter the module of all experts. Put in
another order there, once, they come so to every expert; the router beside the module still
reads the old order. That the rows are what an expert reads, channel by channel, is tried.
"""

from __future__ import annotations

import torch

from permllm.exhaustion import raise_if_out_of_memory
from permllm.folding.fold import reordered
from permllm.folding.gather_points import gathered, same_output
from permllm.folding.trial import FAILURES, LayerProbe
from permllm.models.decoder import Decoder
from permllm.models.linears import Group

BATCH, LENGTH = 8, 12
"""Of the hidden states on which it is tried."""


def expert_inputs(decoder: Decoder, index: int) -> dict[str, tuple[str, ...]]:
    """The groups of experts that read what enters the module of all experts.

    Args:
        decoder: the model.
        index: the layer.

    Returns:
        their names by that module's full name.
    """
    title = decoder.layer_names[index]
    families: dict[str, list[Group]] = {}
    for group in decoder.groups.values():
        first = decoder.linears[group.linears[0]]
        if group.layer == index and first.index is not None:
            families.setdefault(first.parameter, []).append(group)
    found: dict[str, tuple[str, ...]] = {}
    for parameter, groups in families.items():
        module = parameter.rpartition(".")[0]
        if module and _reads_input(decoder, index, module, groups):
            names = tuple(group.name for group in groups)
            found[f"{title}.{module}"] = (*found.get(f"{title}.{module}", ()), *names)
    return found


def _reads_input(decoder: Decoder, index: int, module: str, groups: list[Group]) -> bool:
    """Whether groups read the channels of a module's input as they are."""
    channels = groups[0].channels
    permutation = torch.randperm(channels, generator=torch.Generator().manual_seed(index))
    for dtype in (torch.float64, torch.float32):
        try:
            probe = LayerProbe(decoder, index, dtype, LENGTH)
            moved = reordered(
                decoder.layers[index],
                probe.linears,
                probe.parameters,
                rows={},
                columns={linear: permutation for group in groups for linear in group.linears},
            )
            hidden = probe.hidden(BATCH, LENGTH, 0)
            plain = probe.run(hidden).output
            where = decoder.layers[index].get_submodule(module)
            with gathered(where, permutation.to(probe.device), inputs=True):
                return same_output(plain, probe.run(hidden, parameters=moved).output)
        except FAILURES as error:
            raise_if_out_of_memory(error)
            continue
    return False
