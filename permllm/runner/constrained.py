"""A window whose orders can only be such as a saved model needs no gather, or fewer, for.

Learners know nothing of constraints. What they are shown are groups that may be ordered
freely, made from those of the window:

- *parts* of a group that folds: the channels of one segment (a head), with its lanes (the
  query heads of one key/value head) as further outputs, since they get one order;
- one group for all that read the residual stream, where they shall share an order;
- nothing of groups that keep their order: their pruned weights are always in place.

What a learner finds for these is put together to orders of the window's groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.models.folding import Fold, NoFold
from permllm.models.folds import find_folds
from permllm.models.linears import Group
from permllm.models.residual import find_residual
from permllm.runner.windows import Window

RESIDUAL = "residual stream"
"""What the group is called that stands for all that read the residual stream."""


@attrs.frozen(eq=False)
class Constraints:
    """What orders the groups of a model may get.

    Attributes:
        folds: by group how its orders fold; those of which no order does are left out.
        shared: groups that get one order, which the whole residual stream takes.
        kept: groups that keep the original order.
    """

    folds: Mapping[str, Fold] = attrs.field(factory=dict)
    shared: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.folds or self.shared or self.kept)

    def leaves_free(self, group: str) -> bool:
        """Whether a group may get any order."""
        return not (group in self.folds or group in self.shared or group in self.kept)

    @classmethod
    def of(cls, decoder: Decoder, *, foldable: bool, residual: str) -> Constraints:
        """What the options of a pipeline's ``layers`` mean for a model.

        Args:
            decoder: the model.
            foldable, residual: as in :class:`permllm.pipeline.schema.Layers`.

        Raises:
            UserError: the residual stream of the model cannot be put in another order.
        """
        if not foldable and residual == "free":
            return cls()
        folds = find_folds(decoder)
        shared: frozenset[str] = frozenset()
        kept: frozenset[str] = frozenset()
        if residual == "shared":
            shared = frozenset(find_residual(decoder).groups)
        elif residual == "original":
            kept = frozenset(name for name, fold in folds.items() if isinstance(fold, NoFold))
        used = {name: fold for name, fold in folds.items() if isinstance(fold, Fold)}
        return cls(used if foldable else {}, shared, kept)


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


@attrs.define(eq=False)
class ConstrainedWindow(Window):
    """A window as a learner sees it whose orders are constrained.

    Attributes:
        whole: the window.
        folds: how the orders of its groups fold, of those whose orders have to.
        parts: the part that stands behind each group that the learner sees.
        origins: for each linear of a part the linear that it is a part of, and the part.
        shared: the groups that get one order.
        kept: the pruned weights ``[C_out, C_in]`` of linears that keep their order.
    """

    whole: Window = attrs.field(kw_only=True)
    folds: Mapping[str, Fold] = attrs.field(kw_only=True)
    parts: dict[str, Part] = attrs.field(kw_only=True)
    origins: dict[str, tuple[str, Part]] = attrs.field(kw_only=True)
    shared: tuple[str, ...] = attrs.field(kw_only=True)
    kept: dict[str, Tensor] = attrs.field(kw_only=True)

    @classmethod
    def of(cls, window: Window, constraints: Constraints) -> ConstrainedWindow:
        """The constrained view of a window.

        Groups without a constraint stay as they are, and so do those that shall fold but
        whose segments the pattern does not divide: they are ordered freely, and gathered.

        Raises:
            UserError: groups that shall share an order have several patterns.
        """
        used = {
            name: fold
            for name, fold in constraints.folds.items()
            if name in window.groups
            and len(fold.segments) * len(fold.layout) > 1
            and _fits(fold, window.pattern(name))
        }
        shared = tuple(name for name in window.groups if name in constraints.shared)
        parts: dict[str, Part] = {}
        origins: dict[str, tuple[str, Part]] = {}
        kept: dict[str, Tensor] = {}
        groups: dict[str, Group] = {}
        patterns: dict[str, Pattern] = {}
        if shared:
            groups[RESIDUAL] = _shared_group([window.groups[name] for name in shared])
            patterns[RESIDUAL] = _shared_pattern(window, shared)
        for name, group in window.groups.items():
            pattern = window.pattern(name)
            if name in shared:
                continue
            if name in constraints.kept:
                kept |= {linear: _pruned(window, linear, pattern) for linear in group.linears}
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
        fields = {
            field.name: getattr(window, field.name) for field in attrs.fields(Window) if field.init
        }
        fields |= {
            "groups": groups,
            "patterns": patterns,
            "all_scores": {},
            "all_statistics": {},
        }
        return cls(
            **_arguments(fields),
            whole=window,
            folds=used,
            parts=parts,
            origins=origins,
            shared=shared,
            kept=kept,
        )

    def weight(self, linear: str) -> Tensor:
        return self._reduced(linear, self.whole.weight)

    def scores(self, linear: str) -> Tensor:
        return self._reduced(linear, self.whole.scores)

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs; those of what shares an order are summed."""
        if group == RESIDUAL:
            return _sum_of([self.whole.statistics(name) for name in self.shared])
        if group not in self.parts:
            return self.whole.statistics(group)
        part = self.parts[group]
        sums = self.whole.statistics(part.group.name)
        return {name: _lane_sum(total, part) for name, total in sums.items()}

    def outputs(
        self, weights: Mapping[str, Tensor], rows: Tensor, *, recompute: bool = False
    ) -> Tensor:
        return self.whole.outputs(self._assembled(weights), rows, recompute=recompute)

    def layer_outputs(
        self, weights: Mapping[str, Tensor], rows: Tensor, *, recompute: bool = False
    ) -> list[Tensor]:
        return self.whole.layer_outputs(self._assembled(weights), rows, recompute=recompute)

    def targets(self, rows: Tensor) -> Tensor:
        return self.whole.targets(rows)

    def expanded(self, perms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The orders of the window's groups, of those that were found for what was shown.

        Args:
            perms: by group as the learner sees them.

        Returns:
            ``LongTensor[C_in]`` by group of the window, within their constraints.
        """
        whole: dict[str, Tensor] = {}
        for name, group in self.whole.groups.items():
            order = torch.arange(group.channels)
            if name in self.shared:
                order = perms[RESIDUAL].clone()  # tensors that are saved must not be one
            elif name in perms:
                order = perms[name]
            for key, part in self.parts.items():
                if part.group is group:
                    order[part.layout] = part.layout[:, perms[key].cpu()]
            whole[name] = order
        return whole

    def _reduced(self, linear: str, get: Callable[[str], Tensor]) -> Tensor:
        if linear not in self.origins:
            return get(linear)
        name, part = self.origins[linear]
        return part.reduced(get(name))

    def _assembled(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights ``[C_out, C_in]`` by linear, of those of the parts, and what is kept."""
        found = dict(self.kept) if weights else {}
        pieces: dict[str, list[tuple[Tensor, Part]]] = {}
        for linear, weight in weights.items():
            if linear in self.origins:
                name, part = self.origins[linear]
                pieces.setdefault(name, []).append((weight, part))
            else:
                found[linear] = weight
        for name, parts in pieces.items():
            side_by_side = torch.cat(
                [lane for weight, part in parts for lane in weight.chunk(len(part.layout))],
                dim=1,
            )
            channels = torch.cat([part.layout.flatten() for _, part in parts])
            found[name] = side_by_side.index_select(1, invert(channels).to(side_by_side.device))
        return found


def _arguments(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields by the names that an attrs class's constructor has for them."""
    return {name.lstrip("_"): value for name, value in fields.items()}


def _shared_group(groups: list[Group]) -> Group:
    linears = tuple(linear for group in groups for linear in group.linears)
    return Group(RESIDUAL, groups[0].layer, linears, groups[0].channels)


def _shared_pattern(window: Window, shared: tuple[str, ...]) -> Pattern:
    first = window.pattern(shared[0])
    for name in shared:
        if window.pattern(name) != first:
            raise UserError(
                f"groups that read the residual stream share one order and so need one pattern, "
                f"but {shared[0]} has {first} and {name} {window.pattern(name)}",
                hint="give them one pattern, or leave out 'residual: shared'",
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
