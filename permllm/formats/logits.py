"""What a model says to a few fixed tokens: recorded at export, compared ever after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from permllm.formats.manifest import LogitsEntry
from permllm.models.tracing import find_layers, replaced_forwards

SEQUENCES, LENGTH = 2, 24
"""Of the fixed tokens."""

TOP, SPREAD = 8, 24
"""How many of the largest logits of a token are recorded, and how many others."""

TOLERANCE = 1e-4
"""The largest difference between logits, relative to the largest logit."""


@attrs.frozen
class Agreement:
    """How two models' logits differ.

    Attributes:
        difference: the largest, relative to the largest logit.
        argmax: the share of tokens with the same most likely next token; where two are
            equally likely within the tolerance, either will do.
    """

    difference: float
    argmax: float

    @property
    def holds(self) -> bool:
        """Whether the models compute the same."""
        return self.difference <= TOLERANCE and self.argmax == 1.0


def fixed_tokens(model: Any) -> Tensor:
    """``LongTensor[2, 24]``: any tokens that the model knows, always the same."""
    known = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    return torch.randint(known, (SEQUENCES, LENGTH), generator=generator)


@torch.no_grad()
def float32_logits(model: Any, tokens: Tensor, through: torch.dtype | None = None) -> Tensor:
    """The logits ``[b, L, V]`` of a model computed in float32, on the CPU.

    Half precision is widened layer by layer, so that memory does not double.

    Args:
        model: the model; it stays as it is.
        tokens: ``LongTensor[b, L]``.
        through: the dtype that weights are rounded to first.
    """
    layers = find_layers(model)[1]
    device = model.get_input_embeddings().weight.device
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    around = [parameter for parameter in model.parameters() if id(parameter) not in inside]

    def make(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def widened(*args: Any, **kwargs: Any) -> Any:
            with _widened(list(layers[index].parameters()), through):
                return forward(*args, **kwargs)

        return widened

    with replaced_forwards(layers, make), _widened(around, through):
        logits: Tensor = model(input_ids=tokens.to(device), use_cache=False).logits
    return logits.float().cpu()


def record_logits(tokens: Tensor, logits: Tensor) -> LogitsEntry:
    """The entry of a manifest.

    Args:
        tokens: ``LongTensor[b, L]``.
        logits: ``[b, L, V]`` in float32.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    wide = flat.shape[-1]
    top = flat.topk(min(TOP, wide), dim=-1).indices
    others = torch.linspace(0, wide - 1, min(SPREAD, wide)).long().expand(len(flat), -1)
    indices = torch.cat([top, others], -1)
    return LogitsEntry(
        tokens=_rows(tokens),
        dtype="float32",
        indices=_rows(indices),
        values=_rows(flat.gather(-1, indices)),
        largest=float(flat.abs().max()),
    )


def compare_recorded(entry: LogitsEntry, logits: Tensor) -> Agreement:
    """Compare a model with what was recorded.

    Args:
        entry: of the manifest.
        logits: ``[b, L, V]`` in float32, for the entry's tokens.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    indices, values = torch.tensor(entry.indices), torch.tensor(entry.values)
    if len(flat) != len(indices) or int(indices.max()) >= flat.shape[-1]:
        return Agreement(float("inf"), 0.0)
    got = flat.gather(-1, indices)
    # The most likely token of the record, against that of the model.
    gap = (flat.amax(-1) - got[:, 0]) / max(entry.largest, 1e-12)
    return _agreement((got - values).abs().max(), entry.largest, gap)


def compare_logits(expected: Tensor, got: Tensor) -> Agreement:
    """Compare the logits ``[b, L, V]`` of two models, in float32."""
    if expected.shape != got.shape:
        return Agreement(float("inf"), 0.0)
    largest = float(expected.abs().max())
    chosen = expected.argmax(-1, keepdim=True)
    gap = (got.amax(-1) - got.gather(-1, chosen)[..., 0]) / max(largest, 1e-12)
    return _agreement((got - expected).abs().max(), largest, gap)


def together(agreements: Sequence[Agreement]) -> Agreement:
    """Of sequences of one length: the largest difference, and the share of all their tokens."""
    return Agreement(
        max(one.difference for one in agreements),
        sum(one.argmax for one in agreements) / len(agreements),
    )


def _agreement(difference: Tensor, largest: float, gap: Tensor) -> Agreement:
    relative = float(difference) / max(largest, 1e-12)
    # NaN compares as False, and so counts as a difference.
    return Agreement(
        relative if relative == relative else float("inf"),
        float((gap <= TOLERANCE).double().mean()),
    )


@contextmanager
def _widened(parameters: Sequence[nn.Parameter], through: torch.dtype | None) -> Iterator[None]:
    """Have parameters in float32 (or float64, if they are) for the block."""
    kept = [(parameter, parameter.data) for parameter in parameters]
    try:
        for parameter, data in kept:
            if data.is_floating_point():
                wide = torch.float64 if data.dtype == torch.float64 else torch.float32
                parameter.data = data.to(through or data.dtype).to(wide)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _rows(tensor: Tensor) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in tensor.tolist())
