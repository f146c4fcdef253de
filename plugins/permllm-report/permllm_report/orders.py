"""The orders of channels that runs found, read from their windows and put into figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs
import torch
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.reporting import RunRecord, joined, layer_of, place_in_layer
from permllm.results import LayerReport
from permllm.runs.windows import load_window


@attrs.frozen(eq=False)
class Order:
    """The order of one permutation group.

    Attributes:
        layer: its decoder layer.
        linears: the linears that share it, by their place in the layer.
        alike: how many groups of this place the layer has; experts have one each.
        pattern: the N:M that it was found for.
        permutation: ``LongTensor[C_in]``; place ``i`` holds channel ``permutation[i]``.
        importance: ``[C_in]``, scores of each channel in the original order; None if unknown.
    """

    layer: int
    linears: str
    alike: int
    pattern: Pattern
    permutation: Tensor
    importance: Tensor | None

    @property
    def channels(self) -> int:
        """``C_in``."""
        return len(self.permutation)

    @property
    def moved(self) -> int:
        """Channels that have another place."""
        return int((self.permutation != torch.arange(self.channels)).sum())

    @property
    def regrouped(self) -> int:
        """Channels that are in another group of M."""
        m = self.pattern.m
        return int((self.permutation // m != torch.arange(self.channels) // m).sum())

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """Importance of each group of M before and after, ``[C_in / M]``."""
        assert self.importance is not None
        return group_sums(self.importance, self.pattern.m), group_sums(
            self.importance[self.permutation], self.pattern.m
        )

    @property
    def top(self) -> Tensor:
        """``BoolTensor[C_in]`` by channel: the most important ones, as many as groups of M."""
        assert self.importance is not None
        count = self.channels // self.pattern.m
        chosen = torch.zeros(self.channels, dtype=torch.bool)
        chosen[self.importance.argsort(descending=True, stable=True)[:count]] = True
        return chosen

    @property
    def without_top(self) -> tuple[int, int]:
        """Groups of M that hold none of the most important channels, before and after."""
        top, m = self.top, self.pattern.m
        before, after = (group_sums(chosen.float(), m) for chosen in (top, top[self.permutation]))
        return int((before == 0).sum()), int((after == 0).sum())


def group_sums(values: Tensor, m: int) -> Tensor:
    """The sums ``[C / m]`` of every ``m`` consecutive entries of ``[C]``."""
    return values.reshape(-1, m).sum(1)


def chosen_layers(runs: Iterable[RunRecord], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The decoder layers whose orders are drawn: first, middle and last if none are wanted.

    Raises:
        UserError: a wanted layer is in none of the runs.
    """
    known = sorted({layer_of(report.linear) for run in runs for report in run.result.layers})
    if wanted is None:
        picked = (known[0], known[len(known) // 2], known[-1]) if known else ()
        return tuple(dict.fromkeys(picked))
    for layer in wanted:
        if layer not in known:
            there = f"they are {known[0]} to {known[-1]}" if known else "none is pruned yet"
            raise UserError(f"there is no pruned decoder layer {layer}: {there}")
    return tuple(wanted)


def read_orders(run: RunRecord, layers: Sequence[int]) -> list[Order]:
    """The orders of some decoder layers, one for each place in the layer.

    Raises:
        UserError: a window's file is damaged.
    """
    found: dict[tuple[int, str], Order] = {}
    for path in run.windows:
        # Weights are most of a window, and there is no picture of them.
        window = load_window(path, weights=False)
        for order in _orders(window.reports, window.permutations, window.importance, layers):
            first = found.get((order.layer, order.linears), order)
            alike = first.alike + (first is not order)
            found[order.layer, order.linears] = attrs.evolve(first, alike=alike)
    return sorted(found.values(), key=lambda order: layers.index(order.layer))


def _orders(
    reports: Sequence[LayerReport],
    permutations: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    layers: Sequence[int],
) -> Iterator[Order]:
    groups: dict[str, list[LayerReport]] = {}
    for report in reports:
        groups.setdefault(report.group, []).append(report)
    for group, members in groups.items():
        layer = layer_of(members[0].linear)
        if layer in layers and group in permutations:
            yield Order(
                layer,
                joined([place_in_layer(report.linear) for report in members]),
                1,
                Pattern.parse(members[0].pattern),
                permutations[group],
                importance.get(group),
            )
