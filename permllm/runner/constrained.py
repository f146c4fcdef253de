"""A window whose orders can only be such as fold into the rows before.

Learners know nothing of constraints. What they are shown are *parts* of groups, each of
which may be ordered freely: the channels of one segment (a head) of a group that folds,
with its lanes (the query heads of one key/value head) as further outputs, since they get
one order. What a learner finds for the parts is put together to orders of the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.core.permutations import invert
from permllm.models.folding import Fold, NoFold
from permllm.models.linears import Group
from permllm.runner.windows import Window


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
    """A window as a learner sees it whose orders shall fold.

    Attributes:
        whole: the window.
        folds: how the orders of its groups fold.
        parts: the part that stands behind each group that the learner sees.
        origins: for each linear of a part the linear that it is a part of, and the part.
    """

    whole: Window = attrs.field(kw_only=True)
    folds: Mapping[str, Fold] = attrs.field(kw_only=True)
    parts: dict[str, Part] = attrs.field(kw_only=True)
    origins: dict[str, tuple[str, Part]] = attrs.field(kw_only=True)

    @classmethod
    def of(cls, window: Window, folds: Mapping[str, Fold | NoFold]) -> ConstrainedWindow:
        """The constrained view of a window.

        Groups that do not fold stay as they are, and so do those whose segments the
        pattern does not divide: they may be ordered freely, and are gathered.
        """
        used = {
            name: fold
            for name, fold in folds.items()
            if isinstance(fold, Fold)
            and name in window.groups
            and len(fold.segments) * len(fold.layout) > 1
            and _fits(fold, window.pattern(name))
        }
        parts: dict[str, Part] = {}
        origins: dict[str, tuple[str, Part]] = {}
        groups: dict[str, Group] = {}
        for name, group in window.groups.items():
            if name not in used:
                groups[name] = group
                continue
            fold = used[name]
            for index, layout in enumerate(fold.layout.split(fold.segments, dim=1)):
                part = parts[f"{name}#{index}"] = Part(group, layout)
                linears = tuple(f"{linear}#{index}" for linear in group.linears)
                origins |= {f"{linear}#{index}": (linear, part) for linear in group.linears}
                groups[f"{name}#{index}"] = Group(
                    f"{name}#{index}", group.layer, linears, layout.shape[1]
                )
        own = {
            field.name: getattr(window, field.name) for field in attrs.fields(Window) if field.init
        }
        own |= {
            "groups": groups,
            "patterns": {
                name: window.pattern(parts[name].group.name if name in parts else name)
                for name in groups
            },
            "all_scores": {},
            "all_statistics": {},
        }
        return cls(**_arguments(own), whole=window, folds=used, parts=parts, origins=origins)

    def weight(self, linear: str) -> Tensor:
        return self._reduced(linear, self.whole.weight)

    def scores(self, linear: str) -> Tensor:
        return self._reduced(linear, self.whole.scores)

    def statistics(self, group: str) -> Mapping[str, Tensor]:
        """The statistics of a group's inputs; those of a part's lanes are summed."""
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
            ``LongTensor[C_in]`` by group of the window. Those of groups that fold are foldable.
        """
        whole: dict[str, Tensor] = {}
        for name, group in self.whole.groups.items():
            if name not in self.folds:
                whole[name] = perms[name]
                continue
            order = torch.arange(group.channels)
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
        """Weights ``[C_out, C_in]`` by linear, of those of the parts."""
        found: dict[str, Tensor] = {}
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
