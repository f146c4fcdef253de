"""Outlier-weighted layerwise sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import attrs
from torch import Tensor

from permllm.components import Allocation
from permllm.core.allocation import whole_shares
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.option import option

if TYPE_CHECKING:
    from permllm.contexts.allocation import PrunedLinear
    from permllm.contexts.window import Window


@attrs.frozen
class Owl(Allocation):
    """Keeps more of the decoder layers that have more outliers (OWL).

    An outlier is a score above ``threshold`` times the mean score of its linear. Every layer
    keeps another N of the pipeline's M, the more, the larger its share of outliers is (Yin et
    al. 2024, section 3.2, and its mixed N:8). M should be fine enough: at 2:4 the next N is a
    quarter away, so that nothing changes at the usual spread.
    """

    name: ClassVar[str] = "owl"

    threshold: float = option(
        5.0, help="how often the mean a score is that counts as an outlier", minimum=0
    )
    spread: float = option(
        0.08,
        help="how much more the layer with most outliers keeps than the one with fewest, halved, "
        "as a share of its weights",
        minimum=0,
        maximum=0.5,
    )

    def figures(self, window: Window) -> dict[str, float]:
        """The share of outliers of every linear, 0 to 1."""
        return {
            linear: outlier_share(window.scores(linear), self.threshold)
            for linear in window.linears
        }

    def allocate(
        self, figures: Mapping[str, float], linears: Mapping[str, PrunedLinear]
    ) -> dict[str, Pattern]:
        """One N for all linears of a layer.

        Raises:
            UserError: layers share a permutation, and so need one pattern.
        """
        first = {linear.group: linear.layer for linear in linears.values()}
        if any(first[linear.group] != linear.layer for linear in linears.values()):
            raise UserError(
                "owl gives each layer a pattern of its own, but with 'residual: shared' layers "
                "share one permutation, which needs one pattern",
                hint="leave one of the two out, or take the allocation 'sensitivity'",
            )
        layers = sorted({linear.layer for linear in linears.values()})
        sizes, outliers = dict.fromkeys(layers, 0), dict.fromkeys(layers, 0.0)
        for name, linear in linears.items():
            sizes[linear.layer] += linear.weights
            outliers[linear.layer] += figures[name] * linear.weights
        shares = [outliers[layer] / sizes[layer] for layer in layers]
        pattern = next(iter(linears.values())).pattern
        wanted = wanted_densities(shares, list(sizes.values()), pattern.density, self.spread)
        kept = whole_shares(
            [pattern.m * density for density in wanted],
            list(sizes.values()),
            pattern.n * sum(sizes.values()),
            pattern.m - 1,
        )
        n_of = dict(zip(layers, kept, strict=True))
        return {name: Pattern(n_of[one.layer], one.pattern.m) for name, one in linears.items()}


def outlier_share(scores: Tensor, threshold: float) -> float:
    """The share of the scores that are above ``threshold`` times their mean, 0 to 1."""
    return float((scores > threshold * scores.mean()).double().mean())


def wanted_densities(
    shares: list[float], sizes: list[int], density: float, spread: float
) -> list[float]:
    """What each layer would keep: from the fewest outliers to the most over twice the spread.

    Args:
        shares: of outliers, by layer.
        sizes: of the layers.
        density: of all together, which is kept.
        spread: half the difference between the most and the least.
    """
    low, high = min(shares), max(shares)
    raised = [2 * spread * (share - low) / (high - low) if high > low else 0.0 for share in shares]
    mean = sum(rise * size for rise, size in zip(raised, sizes, strict=True)) / sum(sizes)
    return [density + rise - mean for rise in raised]
