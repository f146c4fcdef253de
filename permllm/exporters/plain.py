"""Writes a model in stored order as transformers itself writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from permllm.core.patterns import Pattern, is_nm
from permllm.errors import RunFailed
from permllm.exporters.writing import as_for_users, without_bars
from permllm.formats.export_files import SHARD_BYTES, read_tensors
from permllm.formats.stored import in_stored_order, parameter_patterns

if TYPE_CHECKING:
    import torch

    from permllm.folding.plan import StoragePlan
    from permllm.models.decoder import Decoder


def write_plain(
    decoder: Decoder,
    storage: StoragePlan,
    patterns: Mapping[str, Pattern],
    dtype: torch.dtype | None,
    directory: Path,
) -> dict[str, tuple[Pattern, int]]:
    """Save the model by ``save_pretrained``, with its weights in stored order.

    Some models are saved in another layout than they have in memory, such as experts one by
    one: what others expect of a checkpoint. Where it cannot be told which of its tensors are
    pruned, they are saved as they are in memory; transformers opens that, too.

    Args:
        decoder: the pruned model.
        storage: how it is stored, without gathers.
        patterns: of the pruned linears.
        dtype: of the saved weights; the model's own where it is None.
        directory: where to.

    Returns:
        pattern and axis of the pruned tensors, by their name in the files.
    """
    for options in ({}, {"save_original_format": False}):
        stored = in_stored_order(decoder, storage, dtype, directory)
        with stored, as_for_users(decoder.model), without_bars():
            decoder.model.save_pretrained(directory, max_shard_size=SHARD_BYTES, **options)
        held = _held(decoder, patterns, directory)
        if held is not None:
            return held
        for path in directory.glob("*.safetensors*"):
            path.unlink()
    raise RunFailed(
        f"transformers saves {type(decoder.model).__name__} in a layout in which the pruned "
        "weights cannot be found again"
    )


def _held(
    decoder: Decoder, patterns: Mapping[str, Pattern], directory: Path
) -> dict[str, tuple[Pattern, int]] | None:
    """Pattern and axis by tensor; None where some pruned weights are not found.

    A tensor under a name that the model does not know is a part of a pruned one if it is of
    the same layer, as wide, and N:M; the parts together have to be as large as the whole.
    """
    whole = parameter_patterns(decoder, patterns)
    known = set(decoder.model.state_dict())
    held: dict[str, tuple[Pattern, int]] = {}
    left = dict(whole)
    parts = dict.fromkeys(decoder.layer_names, 0)
    strangers = []
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor, _ in read_tensors(path):
            if name in whole:
                held[name] = whole[name][:2]
                del left[name]
            elif name not in known and tensor.dim() > 1:
                strangers.append((path, name))
    if not left:
        return held
    wanted = dict.fromkeys(decoder.layer_names, 0)
    for name in left:
        title = _layer_of(decoder, name)
        wanted[title] += decoder.model.get_parameter(name).numel()
    for path in sorted({path for path, _ in strangers}):
        names = {name for place, name in strangers if place == path}
        for name, tensor, _ in read_tensors(path):
            if name not in names:
                continue
            for parameter, (pattern, _, linears) in left.items():
                title = _layer_of(decoder, parameter)
                wide = decoder.linears[linears[0]].c_in
                fits = name.startswith(f"{title}.") and tensor.shape[-1] == wide
                if fits and is_nm(tensor, pattern):
                    held[name] = pattern, -1
                    parts[title] += tensor.numel()
                    break
    return held if parts == wanted else None


def _layer_of(decoder: Decoder, name: str) -> str:
    return next(title for title in decoder.layer_names if name.startswith(f"{title}."))
