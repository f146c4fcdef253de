"""Proves folds: runs a layer with rows moved, and compares what everyone then reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from permllm.exhaustion import raise_if_out_of_memory
from permllm.folding.fold import Fold, NoFold, reordered, row_permutations
from permllm.folding.trial import FAILURES, LayerProbe, LayerRun
from permllm.models.decoder import Decoder

LENGTH = 12
"""Tokens of each sequence of a proof."""

TRIES = 8
"""Inputs after which an expert that no token was routed to is given up."""


def prove(
    decoder: Decoder,
    index: int,
    folds: Mapping[str, Fold | NoFold],
    permutations: Mapping[str, Tensor] | None = None,
) -> dict[str, Fold | NoFold]:
    """Replace folds that do not hold in a layer by the reason.

    Rows and biases of the producers are really moved; everyone's input and the layer's
    output must stay the same but for the order.

    Args:
        decoder: the model.
        index: the layer.
        folds: of the layer's groups.
        permutations: the orders to prove it for, of some groups, all foldable; random ones for
            all groups that fold where it is None.
    """
    proved = dict(folds)
    hypotheses = {name: fold for name, fold in folds.items() if isinstance(fold, Fold)}
    if permutations is None:
        generator = torch.Generator().manual_seed(index)
        permutations = {
            name: fold.random_permutation(generator) for name, fold in hypotheses.items()
        }
    if not permutations:
        return proved
    reason = ""
    for dtype in (torch.float64, torch.float32):
        try:
            trial = _Trial(decoder, index, dtype)
            failed = trial.failures(hypotheses, permutations)
            break
        except FAILURES as error:
            raise_if_out_of_memory(error)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    else:
        failed = dict.fromkeys(permutations, f"the layer cannot be run for a proof ({reason})")
    return proved | {name: NoFold(why) for name, why in failed.items()}


class _Trial:
    """Runs of one layer with its own weights."""

    def __init__(self, decoder: Decoder, index: int, dtype: torch.dtype) -> None:
        self.decoder, self.index, self.dtype = decoder, index, dtype
        self.probe = LayerProbe(decoder, index, dtype, LENGTH)
        self.tolerance = 1e-6 if dtype == torch.float64 else 1e-4
        experts = any(linear.index is not None for linear in self.probe.linears)
        self.batch = 8 if experts else 2
        self.tries = TRIES if experts else 1

    def failures(
        self, folds: Mapping[str, Fold], permutations: Mapping[str, Tensor]
    ) -> dict[str, str]:
        """The groups whose orders cannot be folded, with the reason."""
        failed: dict[str, str] = {}
        reached: set[str] = set()
        for seed in range(self.tries):
            hidden = self.probe.hidden(self.batch, LENGTH, seed)
            plain = self.probe.run(hidden)
            reached |= {name for name, inputs in plain.inputs.items() if len(inputs)}
            kept = {
                name: permutation
                for name, permutation in permutations.items()
                if name not in failed
            }
            if why := self._difference(hidden, plain, folds, kept):
                alone = {
                    name: self._difference(hidden, plain, folds, {name: permutation})
                    for name, permutation in kept.items()
                }
                failed |= {name: reason for name, reason in alone.items() if reason}
                kept = {
                    name: permutation for name, permutation in kept.items() if name not in failed
                }
                if self._difference(hidden, plain, folds, kept):
                    failed |= dict.fromkeys(kept, why)
            if reached >= set(permutations):
                break
        unreached = set(permutations) - reached - set(failed)
        return failed | dict.fromkeys(sorted(unreached), "no token reached it in a trial")

    def _difference(
        self,
        hidden: Tensor,
        plain: LayerRun,
        folds: Mapping[str, Fold],
        permutations: Mapping[str, Tensor],
    ) -> str:
        """What differs once the orders are folded; empty where nothing does."""
        if not permutations:
            return ""
        groups = self.decoder.groups
        parameters = reordered(
            self.decoder.layers[self.index],
            self.probe.linears,
            self.probe.parameters,
            rows=row_permutations(self.decoder, folds, permutations),
            columns={
                one: permutation
                for name, permutation in permutations.items()
                for one in groups[name].linears
            },
        )
        moved = self.probe.run(hidden, parameters=parameters)
        if moved.inputs.keys() != plain.inputs.keys():
            return "with rows moved, other experts are chosen"
        pairs = {
            f"the input of {name.partition(':')[2]}": (
                inputs[:, permutations[name].to(inputs.device)] if name in permutations else inputs,
                moved.inputs[name],
            )
            for name, inputs in plain.inputs.items()
        }
        pairs["the layer's output"] = plain.output, moved.output
        for what, (expected, got) in pairs.items():
            if not self._same(expected, got):
                return f"with its producers' rows moved, {what} is another"
        return ""

    def _same(self, expected: Tensor, got: Tensor) -> bool:
        if expected.shape != got.shape:
            return False
        if not expected.numel():
            return True
        limit = self.tolerance * float(expected.abs().max().clamp_min(1e-12))
        return float((expected - got).abs().max()) <= limit
