"""How the learned orders reach the inputs of a saved model: folded, gathered, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.folding.fold import Fold, NoFold, row_permutations
from permllm.folding.gather_points import gather_points
from permllm.folding.residual import Residual
from permllm.folding.verify import prove
from permllm.models.decoder import Decoder
from permllm.models.linears import Group, biases

Order = Literal["stored", "folded", "gathered"]
"""``stored``: the group keeps the original order, so that nothing is to be done."""


@attrs.frozen
class StoredGroup:
    """What becomes of one group's order.

    Attributes:
        name, linears, channels: as in :class:`permllm.models.linears.Group`.
        order: how it reaches the input.
        into: the parameters whose rows are stored in another order, where it is folded into
            the linears before.
        at: the modules at which it is gathered: one whose output it is; or all linears of
            the group, or the module of all experts, whose input it is.
        reason: why it is not folded, else None.
    """

    name: str
    linears: tuple[str, ...]
    channels: int
    order: Order
    into: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    reason: str | None = None


@attrs.frozen(eq=False)
class StoragePlan:
    """The stored order of a whole model.

    Attributes:
        groups: of all groups that were ordered, in order of execution.
        rows: ``LongTensor[C_out]`` by linear, where its rows are stored in another order.
        columns: ``LongTensor[C_in]`` by linear, likewise.
        gathers: ``LongTensor[C_in]`` by the full name of a module.
        stream: ``LongTensor[H]``, the order of the whole residual stream; None where it
            keeps its own. Groups that read it are folded and have no ``into``.
        axes: by full parameter name the axes that are in the stream's order.
    """

    groups: tuple[StoredGroup, ...]
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    gathers: dict[str, Tensor]
    stream: Tensor | None = None
    axes: dict[str, tuple[int, ...]] = attrs.field(factory=dict)

    @property
    def counts(self) -> dict[Order, int]:
        """How many groups are stored, folded and gathered."""
        counts = Counter(group.order for group in self.groups)
        return {
            "stored": counts["stored"],
            "folded": counts["folded"],
            "gathered": counts["gathered"],
        }


def plan_storage(
    decoder: Decoder,
    permutations: Mapping[str, Tensor],
    find_folds: Callable[[Iterable[int]], Mapping[str, Fold | NoFold]],
    find_residual: Callable[[], Residual | UserError],
    find_experts: Callable[[int], Mapping[str, tuple[str, ...]]] = lambda index: {},
) -> StoragePlan:
    """Fold every permutation that folds, and find where the others are gathered.

    Every fold is proved with the real permutation and the real weights. Where all groups that
    read the residual stream have one permutation, the stream itself is stored in it.

    Args:
        decoder: the pruned model.
        permutations: ``LongTensor[C_in]`` by group.
        find_folds: how the groups of some layers fold.
        find_residual: what follows the residual stream's order, or why nothing can.
        find_experts: by module the groups of a layer's experts that read its input, where they
            are gathered if they have one permutation.

    Raises:
        UserError: a permutation is none, or can be neither folded nor gathered.
    """
    for name, permutation in permutations.items():
        if name not in decoder.groups:
            raise UserError(f"the model has no permutation group '{name}'")
        if not is_permutation(permutation, decoder.groups[name].channels):
            raise UserError(f"the order of {name} is no permutation of its channels")
    permutations = {name: permutation.cpu() for name, permutation in permutations.items()}
    moved = {name: one for name, one in permutations.items() if not _is_identity(one)}
    residual, refused = _shared(permutations, find_residual)
    streamed = () if residual is None else tuple(n for n in residual.groups if n in moved)
    stream = moved[streamed[0]] if streamed else None
    moved = {name: permutation for name, permutation in moved.items() if name not in streamed}
    layers = sorted({decoder.groups[name].layer for name in moved})
    stored = {name: _stored(decoder.groups[name], "folded") for name in streamed}
    columns: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    gathers: dict[str, Tensor] = {}
    known = find_folds(layers)
    for index in layers:
        here = {name: one for name, one in moved.items() if decoder.groups[name].layer == index}
        folds = _proved(decoder, index, known, here)
        folded = {name: one for name, one in here.items() if isinstance(folds[name], Fold)}
        rows |= row_permutations(decoder, folds, folded)
        left = {name: permutation for name, permutation in here.items() if name not in folded}
        points = gather_points(decoder, index, left)
        for where, names in _together(find_experts(index), left).items():
            points |= dict.fromkeys(names, (where,))
            # Experts that stay dense read the same.
            columns |= _columns(decoder, names, next(left[name] for name in names if name in left))
        for name, permutation in here.items():
            fold, group = folds[name], decoder.groups[name]
            if isinstance(fold, Fold):
                stored[name] = _stored(group, "folded", into=_into(decoder, fold))
                continue
            at, reason = points[name], fold.reason + refused
            if at is None:
                raise _stuck(name, reason)
            stored[name] = _stored(group, "gathered", at=at, reason=reason)
            gathers |= dict.fromkeys(at, permutation)
    for name, permutation in moved.items():
        columns |= _columns(decoder, [name], permutation)
    groups = tuple(
        stored.get(name) or _stored(group, "stored")
        for name, group in decoder.groups.items()
        if name in permutations
    )
    axes = {} if residual is None else residual.axes
    return StoragePlan(groups, rows, columns, gathers, stream, axes)


def check_storable(
    decoder: Decoder,
    groups: Iterable[str],
    plan: Callable[[Mapping[str, Tensor]], StoragePlan],
) -> None:
    """Refuse groups whose permutations could not be stored, before they are learned.

    These are experts that are slices of one parameter: no module stands before each of them
    at which its input could be gathered. The first layer that has some is looked at.

    Args:
        decoder: the model.
        groups: those that may get any permutation.
        plan: plans the storage of some permutations.

    Raises:
        UserError: a permutation of one of them can be neither folded nor gathered.
    """
    sliced = [
        group
        for group in (decoder.groups[name] for name in groups)
        if any(decoder.linears[linear].index is not None for linear in group.linears)
    ]
    generator = torch.Generator().manual_seed(0)
    plan(
        {
            group.name: torch.randperm(group.channels, generator=generator)
            for group in sliced
            if group.layer == sliced[0].layer
        }
    )


def _together(
    experts: Mapping[str, tuple[str, ...]], permutations: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Of the experts that read one tensor those whose permutations are one."""
    return {
        where: names
        for where, names in experts.items()
        if len({tuple(permutations[name].tolist()) for name in names if name in permutations}) == 1
    }


def _columns(decoder: Decoder, names: Iterable[str], permutation: Tensor) -> dict[str, Tensor]:
    """The permutation, by the linears of some groups."""
    return {linear: permutation for name in names for linear in decoder.groups[name].linears}


def _shared(
    permutations: Mapping[str, Tensor], find_residual: Callable[[], Residual | UserError]
) -> tuple[Residual | None, str]:
    """What follows the residual stream, where all groups that read it share a permutation.

    Returns:
        None where they do not, or where the stream cannot be moved; and why it cannot.
    """
    orders = Counter(tuple(one.tolist()) for one in permutations.values() if not _is_identity(one))
    if not orders or orders.most_common(1)[0][1] == 1:
        return None, ""
    residual = find_residual()
    if isinstance(residual, UserError):
        # It is gathered then, as any permutation that does not fold.
        return None, f"; {residual.message}"
    readers = {
        tuple(permutations[name].tolist()) for name in residual.groups if name in permutations
    }
    return (residual if len(readers) == 1 and readers <= set(orders) else None), ""


def _proved(
    decoder: Decoder,
    index: int,
    known: Mapping[str, Fold | NoFold],
    permutations: Mapping[str, Tensor],
) -> dict[str, Fold | NoFold]:
    """The folds of a layer's groups for these very orders; reasons for the others."""
    folds = {name: known[name] for name in permutations}
    for name, permutation in permutations.items():
        fold = folds[name]
        if isinstance(fold, Fold) and fold.atom_permutation(permutation) is None:
            folds[name] = NoFold(_outside(fold))
    foldable = {
        name: permutation
        for name, permutation in permutations.items()
        if isinstance(folds[name], Fold)
    }
    return prove(decoder, index, folds, foldable)


def _outside(fold: Fold) -> str:
    """Why an order of a group that folds is none of those that fold."""
    lanes = fold.layout.shape[0]
    tie = f", the same in {lanes} query heads of one key/value head" if lanes > 1 else ""
    return (
        f"its order does not keep within the {len(fold.segments)} segments of "
        f"{max(fold.segments)} channels that can be stored in other orders{tie}"
    )


def _stored(
    group: Group,
    order: Order,
    *,
    into: tuple[str, ...] = (),
    at: tuple[str, ...] = (),
    reason: str | None = None,
) -> StoredGroup:
    return StoredGroup(group.name, group.linears, group.channels, order, into, at, reason)


def _into(decoder: Decoder, fold: Fold) -> tuple[str, ...]:
    """The full names of the parameters whose rows a fold moves."""
    names: dict[str, None] = {}
    for producer in fold.producers:
        linear = decoder.linears[producer.linear]
        layer, title = decoder.layers[linear.layer], decoder.layer_names[linear.layer]
        names |= dict.fromkeys(
            f"{title}.{own}" for own in (linear.parameter, *biases(layer, linear))
        )
    return tuple(names)


def _stuck(name: str, reason: str) -> UserError:
    return UserError(
        f"the order of {name} can be neither folded ({reason}) nor gathered, since its "
        "weights are slices of one parameter",
        hint="'foldable: true' with 'residual: original' in layers learns only orders that fold; "
        "or export as 'masked'",
    )


def _is_identity(permutation: Tensor) -> bool:
    return torch.equal(permutation, torch.arange(len(permutation)))
