"""A model whose pruned weights are rounded to codes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.contexts.export import ExportContext
from permllm.core.codes import Grid
from permllm.core.permutations import invert
from permllm.core.rounding import round_compensating, round_to_nearest
from permllm.core.statistics import GRAM, TOKENS
from permllm.files import workplace
from permllm.folding.plan import StoragePlan
from permllm.formats.packed import Rounded
from permllm.formats.stored import is_much, mapped, parameter_patterns
from permllm.models.checks import not_finite
from permllm.models.decoder import Decoder
from permllm.models.statistics import Sums, add_sums, fill_unseen


@contextmanager
def holding_rounded(
    context: ExportContext, grid: Grid, work: Path, *, calibrated: bool
) -> Iterator[dict[str, Rounded]]:
    """Have a model hold its pruned weights rounded for the block.

    Only weights are rounded that are packed: of a parameter of several experts, all or none.
    Calibrated, a layer is rounded by what its linears read of the calibration text once all
    layers before it are rounded, and linears that no token reaches are rounded by themselves.
    One layer's statistics are in memory at a time.

    Args:
        context: the model, in original order, and its permutations.
        grid: what to round to.
        work: a folder where copies of layers may lie meanwhile that would take much memory.
        calibrated: else every weight is rounded to the nearest code.

    Returns:
        how each packed parameter is rounded, by its full name.

    Raises:
        UserError: the calibration text is missing, or activations overflow float16.
        RunFailed: activations are not finite for another reason.
    """
    decoder = context.decoder
    whole = parameter_patterns(decoder, context.patterns)
    wanted = {linear for _, _, linears in whole.values() for linear in linears}
    scales: dict[str, Tensor] = {}
    with ExitStack() as stack:
        much = is_much(decoder, None)
        folder = stack.enter_context(workplace(work)) if much else None
        stream = _Stream.of(context) if calibrated else None
        for index in range(len(decoder.layers)):
            sums = None if stream is None else stream.sums(index)
            weights: dict[str, Tensor] = {}
            for name, group in decoder.groups.items():
                order = context.permutations.get(name)
                for linear in group.linears if group.layer == index else ():
                    if linear in wanted:
                        gram = None if sums is None else sums[name][GRAM.name]
                        weights[linear], scales[linear] = _rounded(
                            decoder.weight(linear), order, gram, grid
                        )
            if folder is not None:
                weights = mapped(folder / f"{index}.safetensors", weights)
            stack.enter_context(decoder.substituted(weights))
            if stream is not None:
                stream.go_through(index)
        yield {
            name: Rounded(
                grid,
                _stored_scales(context.storage, decoder, linears, scales),
                decoder.weight(linears[0]).dtype,
            )
            for name, (_, _, linears) in whole.items()
        }


def _rounded(
    weight: Tensor, order: Tensor | None, gram: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor]:
    """A rounded weight in its own dtype and original order, and its scales.

    Args:
        weight: ``[C_out, C_in]``, in original order.
        order: ``LongTensor[C_in]``, that of its stored columns; None for the same.
        gram: ``[C_in, C_in]`` of its inputs, in original order; None to round to the nearest.
        grid: what to round to.
    """
    order = torch.arange(weight.shape[1]) if order is None else order
    order = order.to(weight.device)
    moved = weight[:, order]
    if gram is None:
        rounded, scales = round_to_nearest(moved, moved.new_ones(len(order)), grid)
    else:
        rounded, scales = round_compensating(moved, GRAM.permuted(gram, order), grid)
    return rounded[:, invert(order)].to(weight.dtype), scales


def _stored_scales(
    storage: StoragePlan, decoder: Decoder, linears: Sequence[str], scales: Mapping[str, Tensor]
) -> Tensor:
    """The scales of one parameter's linears, experts in the order of their slices."""
    # They are told in the order in which they run.
    ordered = sorted(linears, key=lambda name: decoder.linears[name].index or 0)
    return torch.cat([_stored_rows(storage, decoder, name, scales) for name in ordered])


def _stored_rows(
    storage: StoragePlan, decoder: Decoder, name: str, scales: Mapping[str, Tensor]
) -> Tensor:
    """The scales of a linear in the order in which its rows are stored."""
    linear, own = decoder.linears[name], scales[name].cpu()
    if name in storage.rows:
        own = own[storage.rows[name].cpu()]
    title = decoder.layer_names[linear.layer]
    # Axes are counted from the end.
    rows = -1 if linear.transposed else -2
    if storage.stream is not None and rows in storage.axes.get(f"{title}.{linear.parameter}", ()):
        own = own[storage.stream.cpu()]
    return own.contiguous()


@attrs.define(eq=False)
class _Stream:
    """The calibration sequences as they enter a layer.

    Attributes:
        decoder: the model; layers before hold what they are to hold.
        batches: hidden states ``[b, L, H]`` with the layers' other arguments.
    """

    decoder: Decoder
    batches: list[tuple[Tensor, Any]]

    @classmethod
    def of(cls, context: ExportContext) -> _Stream:
        """Embedded calibration text."""
        sequences = context.calibration()
        rows = sequences.learning[: sequences.calibration]
        calls = [
            context.decoder.embed(sequences.tokens[part])
            for part in rows.split(sequences.batch_size)
        ]
        return cls(context.decoder, [(call.hidden, call) for call in calls])

    def sums(self, layer: int) -> Sums:
        """Gram matrices of what the groups of a layer read.

        Raises:
            UserError, RunFailed: they are not finite.
        """
        sums: Sums = {}
        with self.decoder.visiting([layer]):
            for hidden, calls in self.batches:
                _, share = self.decoder.statistics(layer, hidden, calls, (TOKENS, GRAM))
                add_sums(sums, share)
        for name, values in sums.items():
            if not bool(values[GRAM.name].isfinite().all()):
                what = f"what {self.decoder.groups[name].linears[0]} reads is not finite"
                raise not_finite(what, self.decoder.model)
        # By themselves, without correlations.
        fill_unseen(sums)
        return sums

    @torch.no_grad()
    def go_through(self, layer: int) -> None:
        """Move on to the next layer."""
        with self.decoder.visiting([layer]):
            self.batches = [
                (self.decoder.run_layer(layer, hidden, calls), calls)
                for hidden, calls in self.batches
            ]
