"""The tensors of a pruned model in stored order, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from permllm.available_memory import available_memory
from permllm.core.patterns import Pattern
from permllm.files import workplace
from permllm.folding.fold import reordered
from permllm.folding.plan import StoragePlan
from permllm.folding.residual import moved
from permllm.formats.export_files import read_tensors, write_file
from permllm.formats.gathers import BUFFER
from permllm.models.decoder import Decoder
from permllm.models.linears import Linear

COPIES_SHARE = 0.25
"""Of the memory that is free, what copies of a model's layers may take while it is saved."""


@attrs.frozen(eq=False)
class StoredTensor:
    """One tensor of the model, as it is to be stored.

    Attributes:
        name: as in the model's ``state_dict``.
        tensor: contiguous, on the CPU.
        pattern: the N:M that it holds along ``axis``, or None for a dense one.
        axis: -1 for weights ``[…, C_out, C_in]``, -2 for those stored transposed.
        linears: those that it is the weight of: one, or all experts of a 3-D parameter.
    """

    name: str
    tensor: Tensor
    pattern: Pattern | None = None
    axis: int = -1
    linears: tuple[str, ...] = ()


def stored_tensors(
    decoder: Decoder,
    storage: StoragePlan,
    patterns: Mapping[str, Pattern],
    dtype: torch.dtype | None = None,
) -> Iterator[StoredTensor]:
    """All tensors of a model, those around the layers first, then layer by layer.

    Only a layer's copies live at a time. A tensor that has two names, such as tied
    embeddings, comes under the first. Index buffers of gathers come last.

    Args:
        decoder: the model, holding the pruned weights in original order.
        storage: how it is stored.
        patterns: of the pruned linears.
        dtype: of all floating-point tensors; their own where it is None.
    """
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()

    def once(tensor: Tensor) -> bool:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        known = key in seen and tensor.numel() > 0
        seen.add(key)
        return not known

    pruned = parameter_patterns(decoder, patterns)
    titles = tuple(f"{name}." for name in decoder.layer_names)
    state = decoder.model.state_dict()
    for name, tensor in state.items():
        if not name.startswith(titles) and not name.endswith(BUFFER) and once(tensor):
            yield StoredTensor(name, _ready(_in_stream(storage, name, tensor), dtype))
    for index, title in enumerate(decoder.layer_names):
        kept = {
            name: tensor
            for name, tensor in decoder.layers[index].state_dict().items()
            if not name.endswith(BUFFER) and once(tensor)
        }
        new = layer_parameters(decoder, storage, index)
        for name, tensor in kept.items():
            full, ready = f"{title}.{name}", _ready(new.get(name, tensor), dtype)
            if full in pruned:
                pattern, axis, linears = pruned[full]
                yield StoredTensor(full, ready, pattern, axis, linears)
            else:
                yield StoredTensor(full, ready)
    for module, permutation in storage.gathers.items():
        yield StoredTensor(f"{module}.{BUFFER}", permutation.cpu().clone())


def layer_parameters(decoder: Decoder, storage: StoragePlan, index: int) -> dict[str, Tensor]:
    """The parameters of a layer whose stored order is another, by name within the layer."""
    layer = decoder.layers[index]
    linears = [linear for linear in decoder.linears.values() if linear.layer == index]
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        new = reordered(layer, linears, parameters, rows=storage.rows, columns=storage.columns)
        title = decoder.layer_names[index]
        for name, parameter in parameters.items():
            if storage.stream is not None and f"{title}.{name}" in storage.axes:
                own = new.get(name, parameter.detach())
                new[name] = _in_stream(storage, f"{title}.{name}", own)
    return new


@contextmanager
def in_stored_order(
    decoder: Decoder,
    storage: StoragePlan,
    dtype: torch.dtype | None = None,
    directory: Path | None = None,
) -> Iterator[None]:
    """Give the model's parameters their stored order (and dtype) for the block.

    Args:
        decoder: the model.
        storage: how it is stored.
        dtype: of all floating-point parameters; their own where it is None.
        directory: where copies of layers may lie meanwhile that would take much of the memory.

    Raises:
        OSError: they cannot be written there.
    """
    kept: list[tuple[nn.Parameter, Tensor]] = []
    with ExitStack() as stack:
        folder = None
        if directory is not None and is_much(decoder, dtype):
            folder = stack.enter_context(workplace(directory))
        # Before the files go that parameters are mapped from.
        stack.callback(_give_back, kept)
        for index, layer in enumerate(decoder.layers):
            new = layer_parameters(decoder, storage, index)
            own = {name: one.data for name, one in layer.named_parameters()}
            stored = {name: _converted(new.get(name, one), dtype) for name, one in own.items()}
            if folder is not None:
                changed = {name: one for name, one in stored.items() if one is not own[name]}
                stored |= mapped(folder / f"{index}.safetensors", changed)
            for name, parameter in layer.named_parameters():
                kept.append((parameter, parameter.data))
                parameter.data = stored[name]
        inside = {id(parameter) for parameter, _ in kept}
        for name, parameter in decoder.model.named_parameters():
            if id(parameter) not in inside:
                kept.append((parameter, parameter.data))
                parameter.data = _converted(_in_stream(storage, name, parameter.data), dtype)
        yield


def _give_back(kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, data in kept:
        parameter.data = data


def is_much(decoder: Decoder, dtype: torch.dtype | None) -> bool:
    """Whether copies of all layers would take much of the memory."""
    copies = sum(
        one.numel() * (one.dtype if dtype is None else dtype).itemsize
        for layer in decoder.layers
        for one in layer.parameters()
    )
    return copies > COPIES_SHARE * available_memory()


def mapped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors mapped from a file that they are written to."""
    write_file(path, {name: one.contiguous() for name, one in tensors.items()})
    return {name: tensor for name, tensor, _ in read_tensors(path)}


def parameter_patterns(
    decoder: Decoder, patterns: Mapping[str, Pattern]
) -> dict[str, tuple[Pattern, int, tuple[str, ...]]]:
    """Pattern, axis and linears of every parameter that is pruned as a whole, by full name."""
    slices: dict[str, list[Linear]] = {}
    for linear in decoder.linears.values():
        title = decoder.layer_names[linear.layer]
        slices.setdefault(f"{title}.{linear.parameter}", []).append(linear)
    patterns_of = {}
    for name, linears in slices.items():
        held = {patterns.get(linear.name) for linear in linears}
        pattern = next(iter(held))
        if len(held) == 1 and pattern is not None:
            axis = -2 if linears[0].transposed else -1
            patterns_of[name] = pattern, axis, tuple(linear.name for linear in linears)
    return patterns_of


def _in_stream(storage: StoragePlan, name: str, tensor: Tensor) -> Tensor:
    """A tensor whose axes follow the residual stream's order, if there is one."""
    if storage.stream is None:
        return tensor
    return moved(tensor, storage.axes.get(name, ()), storage.stream)


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    return tensor.detach().to(dtype)


def _ready(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return _converted(tensor, dtype).cpu().contiguous()
