"""Patterns by what the model loses if a part of it is pruned alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor

from permllm.components import Allocation
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.allocation import cheapest_choices
from permllm.core.divergence import mean_kl
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.precision import has_bfloat16
from permllm.option import option

if TYPE_CHECKING:
    from permllm.contexts.allocation import PrunedLinear
    from permllm.contexts.window import Window


@attrs.frozen
class Sensitivity(Allocation):
    """Keeps more where the model's own output suffers most.

    Every permutation group is pruned alone, at every N near the pipeline's; its damage is the
    KL divergence of the dense model's next tokens from those of the model pruned there. Then
    each group gets the N with which the damages add up to the least, in as many weights as the
    pipeline's pattern keeps. The experts of a layer that do the same count as one group.
    """

    name: ClassVar[str] = "sensitivity"

    sequences: int = option(
        4, help="calibration sequences that the damage is measured on", minimum=1
    )
    reach: int = option(
        2, help="how far from the pipeline's N another may be that a group gets", minimum=1
    )

    def near(self, pattern: Pattern) -> range:
        """Every N that a group may get."""
        return range(max(1, pattern.n - self.reach), min(pattern.m, pattern.n + self.reach + 1))

    def cost(self, workload: Workload) -> ComponentCost:
        """Of the passes: each group at about three patterns, through half of the model."""
        passes = 3 * workload.groups / 2
        tokens = min(self.sequences, workload.sequences) * workload.length
        return ComponentCost(tokens=round(passes * tokens)) + super().cost(workload)

    @torch.no_grad()
    def figures(self, window: Window) -> dict[str, float]:
        """The KL divergence in nats, by linear and N as in ``model.layers.0.mlp.down_proj 2``.

        Of linears that are pruned together each has its share.
        """
        rows = window.learning[: min(self.sequences, window.calibration)]
        trials = [
            (groups, n)
            for groups in parts_of(window.groups)
            for n in self.near(window.pattern(groups[0]))
        ]
        own = [trials[place] for place in window.world.own(len(trials))]
        found = []
        for (groups, n), damage in zip(own, damages(window, own, rows), strict=True):
            linears = [linear for group in groups for linear in window.groups[group].linears]
            found += [(f"{linear} {n}", damage / len(linears)) for linear in linears]
        return dict(window.world.gathered(found))

    def allocate(
        self, figures: Mapping[str, float], linears: Mapping[str, PrunedLinear]
    ) -> dict[str, Pattern]:
        """The least damage in sum, found exactly."""
        groups: dict[str, list[str]] = {}
        for name, linear in linears.items():
            groups.setdefault(linear.group, []).append(name)
        pattern = next(iter(linears.values())).pattern
        every = self.near(pattern)
        sizes = [sum(linears[name].weights for name in names) for names in groups.values()]
        chosen = cheapest_choices(
            [
                [sum(figures[f"{name} {n}"] for name in names) for n in every]
                for names in groups.values()
            ],
            [[n * size // pattern.m for n in every] for size in sizes],
            pattern.n * sum(sizes) // pattern.m,
        )
        return {
            name: Pattern(every[place], pattern.m)
            for names, place in zip(groups.values(), chosen, strict=True)
            for name in names
        }


def parts_of(groups: Iterable[str]) -> list[list[str]]:
    """The groups of one layer, those of experts that do the same together.

    >>> parts_of(["mlp.experts.0.w1 w3", "mlp.experts.0.w2", "mlp.experts.1.w1 w3", "fc1", "fc2"])
    [['mlp.experts.0.w1 w3', 'mlp.experts.1.w1 w3'], ['mlp.experts.0.w2'], ['fc1'], ['fc2']]
    """
    parts: dict[str, list[str]] = {}
    for name in groups:
        parts.setdefault(re.sub(r"\.[0-9]+(?=\.)|\[[0-9]+\]", "", name), []).append(name)
    return list(parts.values())


def damages(window: Window, trials: Sequence[tuple[list[str], int]], rows: Tensor) -> list[float]:
    """``KL(dense ‖ pruned)`` of the next token in nats, if some groups alone are pruned.

    Args:
        window: of one layer.
        trials: groups, and the N of the pattern's M that they keep.
        rows: ``LongTensor[r]``, the sequences.
    """
    if not trials:
        return []
    totals = [0.0] * len(trials)
    with torch.autocast(window.device.type, torch.bfloat16, enabled=has_bfloat16(window.device)):
        states = [window.outputs(pruned(window, groups, n), rows) for groups, n in trials]
        together = torch.cat([window.targets(rows), *states])
        ends = window.through_the_rest(together, rows.repeat(len(trials) + 1)).split(len(rows))
        # Logits of one sequence at a time: they are larger than anything else here.
        for at, row in enumerate(rows.split(1)):
            logits = (window.logits(end[at : at + 1], row)[0] for end in ends)
            dense = next(logits)
            for place, pruned_there in enumerate(logits):
                totals[place] += float(mean_kl(pruned_there, dense))
    return [total / len(rows) for total in totals]


def pruned(window: Window, groups: Iterable[str], n: int) -> dict[str, Tensor]:
    """The weights ``[C_out, C_in]`` of some groups' linears, with ``n`` of every M kept."""
    weights = {}
    for group in groups:
        pattern = Pattern(n, window.pattern(group).m)
        for linear in window.groups[group].linears:
            weight = window.weight(linear)
            weights[linear] = weight * nm_mask(window.scores(linear), pattern)
    return weights
