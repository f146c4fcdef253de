"""A window whose orders can only be such as a saved model needs no gather, or fewer, for.

Learners know nothing of constraints. What they are shown are groups that may be ordered
freely, made from those of the window:

- *parts* of a group that folds: the channels of one segment (a head), with its lanes (the
  query heads of one key/value head) as further outputs, since they get one order;
- one group for all that read the residual stream, where they shall share an order, and one
  for all experts of a layer that read the same;
- nothing of groups that keep their order: their pruned weights are always in place.

What a learner finds for these is put together to orders of the window's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from permllm.contexts.window import Window
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.errors import UserError
from permllm.folding.constraints import RESIDUAL, Constraints
from permllm.folding.fold import Fold
from permllm.models.linears import Group


@attrs.frozen(eq=False)
class Part:
    """Channels of a group that may be ordered freely among themselves.

    Attributes:
        group: the group.
        layout: ``LongTensor[lanes, size]``: its channels, those of a lane in a row.
    """

    group: Group
    layout: Tensor

    def reduced(self, matrix: Tensor) -> Tensor:
        """A matrix ``[C_out, C_in]`` as ``[lanes · C_out, size]``."""
        return torch.cat([matrix.index_select(1, lane.to(matrix.device)) for lane in self.layout])


@attrs.frozen(eq=False)
class ReducedTensors:
    """Weights, scores and statistics of what a learner is shown: a ``Tensors`` of windows.

    Attributes:
        whole: the window.
        parts: the part that stands behind each group that the learner sees.
        origins: for each linear of a part the linear that it is a part of, and the part.
        shared: the groups that get one permutation, by what they share.
        kept: the pruned weights ``[C_out, C_in]`` of linears that keep their order.
    """

    whole: Window
    parts: Mapping[str, Part]
    origins: Mapping[str, tuple[str, Part]]
    shared: Mapping[str, tuple[str, ...]]
    kept: Mapping[str, Tensor]

    def weight(self, linear: str) -> Tensor:
        """The dense weight, of a part's linear ``[lanes · C_out, size]``."""
        return self._reduced(linear, self.whole.weight)

    def scores(self, linear: str) -> Tensor:
        """The scores, in the shape of the weight."""
        return self._reduced(linear, self.whole.scores)

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs; those of what shares a permutation are summed."""
        if group in self.shared:
            return _sum_of([self.whole.statistics(name) for name in self.shared[group]])
        if group not in self.parts:
            return self.whole.statistics(group)
        part = self.parts[group]
        sums = self.whole.statistics(part.group.name)
        return {name: _lane_sum(total, part) for name, total in sums.items()}

    def assembled(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights ``[C_out, C_in]`` by linear, of those of the parts, and what is kept."""
        pieces: dict[str, list[str]] = {}
        for linear in weights:
            name, _ = self.origins.get(linear, (linear, None))
            pieces.setdefault(name, []).append(linear)
        kept = self.kept if weights else {}

        def assemble(name: str) -> Tensor:
            if name in kept:
                return kept[name]
            if name in weights:
                return weights[name]
            return self._side_by_side({linear: weights[linear] for linear in pieces[name]})

        return self.whole.for_each((*kept, *pieces), assemble)

    def _side_by_side(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The weight of a linear from those of all its parts."""
        parts = [self.origins[linear][1] for linear in weights]
        lanes = [
            lane
            for weight, part in zip(weights.values(), parts, strict=True)
            for lane in weight.chunk(len(part.layout))
        ]
        channels = torch.cat([part.layout.flatten() for part in parts])
        side_by_side = torch.cat(lanes, dim=1)
        return side_by_side.index_select(1, invert(channels).to(side_by_side.device))

    def _reduced(self, linear: str, get: Callable[[str], Tensor]) -> Tensor:
        if linear not in self.origins:
            return get(linear)
        name, part = self.origins[linear]
        return part.reduced(get(name))


@attrs.frozen(eq=False)
class ConstrainedWindow:
    """A window whose permutations are constrained, as a learner sees it, and the way back.

    Attributes:
        whole: the window.
        view: what the learner is given.
        folds: how the permutations of its groups fold, of those that have to.
        parts: the part that stands behind each group of the view.
        shared: the groups that get one permutation, by what they share: the view's group.
    """

    whole: Window
    view: Window
    folds: Mapping[str, Fold]
    parts: Mapping[str, Part]
    shared: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, window: Window, constraints: Constraints) -> ConstrainedWindow:
        """The constrained view of a window.

        Groups without a constraint stay as they are, and so do those that shall fold but
        whose segments the pattern does not divide: they are ordered freely, and gathered.

        Raises:
            UserError: groups that shall share a permutation have several patterns.
        """
        used = {
            name: fold
            for name, fold in constraints.folds.items()
            if name in window.groups
            and len(fold.segments) * len(fold.layout) > 1
            and _fits(fold, window.pattern(name))
        }
        shared = {
            what: here
            for what, names in constraints.shared.items()
            if (here := tuple(name for name in window.groups if name in names))
        }
        sharing = {name for names in shared.values() for name in names}
        parts: dict[str, Part] = {}
        origins: dict[str, tuple[str, Part]] = {}
        kept: dict[str, Pattern] = {}
        groups: dict[str, Group] = {}
        patterns: dict[str, Pattern] = {}
        for what, names in shared.items():
            groups[what] = _shared_group(what, [window.groups[name] for name in names])
            patterns[what] = _shared_pattern(window, what, names)
        for name, group in window.groups.items():
            pattern = window.pattern(name)
            if name in sharing:
                continue
            if name in constraints.kept:
                kept |= dict.fromkeys(group.linears, pattern)
            elif name not in used:
                groups[name], patterns[name] = group, pattern
            else:
                fold = used[name]
                for index, layout in enumerate(fold.layout.split(fold.segments, dim=1)):
                    own = f"{name}#{index}"
                    part = parts[own] = Part(group, layout)
                    linears = tuple(f"{linear}#{index}" for linear in group.linears)
                    origins |= {f"{linear}#{index}": (linear, part) for linear in group.linears}
                    groups[own] = Group(own, group.layer, linears, layout.shape[1])
                    patterns[own] = pattern
        pruned = window.for_each(kept, lambda linear: _pruned(window, linear, kept[linear]))
        tensors = ReducedTensors(window, parts, origins, shared, pruned)
        view = attrs.evolve(window, groups=groups, patterns=patterns, tensors=tensors)
        return cls(window, view, used, parts, shared)

    def expanded(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The permutations of the window's groups, from those of the view's.

        Args:
            learned: by group as the learner sees them.

        Returns:
            ``LongTensor[C_in]`` by group of the window, within their constraints.
        """
        whole: dict[str, Tensor] = {}
        for name, group in self.whole.groups.items():
            permutation = learned.get(name, torch.arange(group.channels))
            for what, names in self.shared.items():
                if name in names:
                    permutation = learned[what].clone()  # tensors that are saved must not be one
            for key, part in self.parts.items():
                if part.group is group:
                    permutation[part.layout] = part.layout[:, learned[key].cpu()]
            whole[name] = permutation
        return whole


def _shared_group(name: str, groups: list[Group]) -> Group:
    linears = tuple(linear for group in groups for linear in group.linears)
    return Group(name, groups[0].layer, linears, groups[0].channels)


def _shared_pattern(window: Window, what: str, shared: tuple[str, ...]) -> Pattern:
    first = window.pattern(shared[0])
    read = f"the {what}" if what == RESIDUAL else f"what enters {what}"
    for name in shared:
        if window.pattern(name) != first:
            raise UserError(
                f"groups that read {read} share one order and so need one pattern, "
                f"but {shared[0]} has {first} and {name} {window.pattern(name)}",
                hint="give them one pattern"
                + (", or leave out 'residual: shared'" if what == RESIDUAL else ""),
            )
    return first


def _pruned(window: Window, linear: str, pattern: Pattern) -> Tensor:
    return window.weight(linear) * nm_mask(window.scores(linear), pattern)


def _sum_of(statistics: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: sum(one[name] for one in statistics) for name in statistics[0]}  # type: ignore[misc]


def _fits(fold: Fold, pattern: Pattern) -> bool:
    """Whether every M channels of a part, from its first on, are a group of the pattern."""
    if any(size % pattern.m for size in fold.segments):
        return False
    grouped = fold.layout.unflatten(1, (-1, pattern.m))
    steps = torch.arange(pattern.m)
    return bool(
        (grouped == grouped[..., :1] + steps).all() & (grouped[..., 0] % pattern.m == 0).all()
    )


def _lane_sum(total: Tensor, part: Part) -> Tensor:
    lanes = []
    for lane in part.layout:
        share = total
        for axis in range(total.dim()):
            if total.shape[axis] == part.group.channels:
                share = share.index_select(axis, lane.to(total.device))
        lanes.append(share)
    return torch.stack(lanes).sum(0)
