"""How the learned orders reach the inputs of a saved model: folded, gathered, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.models.folding import Fold, NoFold, row_orders
from permllm.models.folds import find_folds
from permllm.models.gathering import gather_places
from permllm.models.linears import Group, biases
from permllm.models.proving import prove
from permllm.models.residual import Residual, find_residual

Order = Literal["stored", "folded", "gathered"]
"""``stored``: the group keeps the original order, so that nothing is to be done."""


@attrs.frozen
class Placement:
    """What becomes of one group's order.

    Attributes:
        name, linears, channels: as in :class:`permllm.models.linears.Group`.
        order: how it reaches the input.
        into: the parameters whose rows are stored in another order, where it is folded into
            the linears before.
        at: the modules at which it is gathered: one whose output it is, or all linears of
            the group, whose input it is.
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
class Placing:
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

    groups: tuple[Placement, ...]
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    gathers: dict[str, Tensor]
    stream: Tensor | None = None
    axes: dict[str, tuple[int, ...]] = attrs.field(factory=dict)

    @property
    def counts(self) -> dict[Order, int]:
        """How many groups are stored, folded and gathered."""
        found = Counter(group.order for group in self.groups)
        return {"stored": found["stored"], "folded": found["folded"], "gathered": found["gathered"]}


def place_orders(decoder: Decoder, perms: Mapping[str, Tensor]) -> Placing:
    """Fold every order that folds, and find where the others are gathered.

    Every fold is proved with the real order and the real weights. Where all groups that
    read the residual stream have one order, the stream itself is stored in it.

    Args:
        decoder: the pruned model.
        perms: ``LongTensor[C_in]`` by group.

    Raises:
        UserError: an order is no permutation, or can be neither folded nor gathered.
    """
    for name, perm in perms.items():
        if name not in decoder.groups:
            raise UserError(f"the model has no permutation group '{name}'")
        if not is_permutation(perm, decoder.groups[name].channels):
            raise UserError(f"the order of {name} is no permutation of its channels")
    perms = {name: perm.cpu() for name, perm in perms.items()}
    moved = {name: perm for name, perm in perms.items() if not _is_identity(perm)}
    residual, refused = _shared(decoder, perms)
    streamed = () if residual is None else tuple(n for n in residual.groups if n in moved)
    stream = moved[streamed[0]] if streamed else None
    moved = {name: perm for name, perm in moved.items() if name not in streamed}
    layers = sorted({decoder.groups[name].layer for name in moved})
    found = {name: _placement(decoder.groups[name], "folded") for name in streamed}
    rows: dict[str, Tensor] = {}
    gathers: dict[str, Tensor] = {}
    known = find_folds(decoder, layers)
    for index in layers:
        here = {name: perm for name, perm in moved.items() if decoder.groups[name].layer == index}
        folds = _proved(decoder, index, known, here)
        folded = {name: perm for name, perm in here.items() if isinstance(folds[name], Fold)}
        rows |= row_orders(decoder, folds, folded)
        left = {name: perm for name, perm in here.items() if name not in folded}
        places = gather_places(decoder, index, left)
        for name, perm in here.items():
            fold, group = folds[name], decoder.groups[name]
            if isinstance(fold, Fold):
                found[name] = _placement(group, "folded", into=_into(decoder, fold))
                continue
            at, reason = places[name], fold.reason + refused
            if at is None:
                raise _stuck(name, reason)
            found[name] = _placement(group, "gathered", at=at, reason=reason)
            gathers |= dict.fromkeys(at, perm)
    columns = {one: perm for name, perm in moved.items() for one in decoder.groups[name].linears}
    groups = tuple(
        found.get(name) or _placement(group, "stored")
        for name, group in decoder.groups.items()
        if name in perms
    )
    axes = {} if residual is None else residual.axes
    return Placing(groups, rows, columns, gathers, stream, axes)


def check_placeable(decoder: Decoder, groups: Iterable[str]) -> None:
    """Refuse groups whose orders could not be stored, before they are learned.

    These are experts that are slices of one parameter: no module stands before each of them
    at which its input could be gathered. The first layer that has some is looked at.

    Args:
        decoder: the model.
        groups: those that may get any order.

    Raises:
        UserError: an order of one of them can be neither folded nor gathered.
    """
    sliced = [
        group
        for group in (decoder.groups[name] for name in groups)
        if any(decoder.linears[linear].index is not None for linear in group.linears)
    ]
    generator = torch.Generator().manual_seed(0)
    perms = {
        group.name: torch.randperm(group.channels, generator=generator)
        for group in sliced
        if group.layer == sliced[0].layer
    }
    place_orders(decoder, perms)


def _shared(decoder: Decoder, perms: Mapping[str, Tensor]) -> tuple[Residual | None, str]:
    """What follows the residual stream, where all groups that read it have one order.

    Returns:
        None where they have not, or where the stream cannot be moved; and why it cannot.
    """
    orders = Counter(tuple(perm.tolist()) for perm in perms.values() if not _is_identity(perm))
    if not orders or orders.most_common(1)[0][1] == 1:
        return None, ""
    try:
        residual = find_residual(decoder)
    except UserError as error:
        # It is gathered then, as any order that does not fold.
        return None, f"; {error.message}"
    readers = {tuple(perms[name].tolist()) for name in residual.groups if name in perms}
    return (residual if len(readers) == 1 and readers <= set(orders) else None), ""


def _proved(
    decoder: Decoder,
    index: int,
    known: Mapping[str, Fold | NoFold],
    perms: Mapping[str, Tensor],
) -> dict[str, Fold | NoFold]:
    """The folds of a layer's groups for these very orders; reasons for the others."""
    folds = {name: known[name] for name in perms}
    for name, perm in perms.items():
        fold = folds[name]
        if isinstance(fold, Fold) and fold.atom_order(perm) is None:
            folds[name] = NoFold(_outside(fold))
    foldable = {name: perm for name, perm in perms.items() if isinstance(folds[name], Fold)}
    return prove(decoder, index, folds, foldable)


def _outside(fold: Fold) -> str:
    """Why an order of a group that folds is none of those that fold."""
    lanes = fold.layout.shape[0]
    tie = f", the same in {lanes} query heads of one key/value head" if lanes > 1 else ""
    return (
        f"its order does not keep within the {len(fold.segments)} segments of "
        f"{max(fold.segments)} channels that can be stored in other orders{tie}"
    )


def _placement(
    group: Group,
    order: Order,
    *,
    into: tuple[str, ...] = (),
    at: tuple[str, ...] = (),
    reason: str | None = None,
) -> Placement:
    return Placement(group.name, group.linears, group.channels, order, into, at, reason)


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


def _is_identity(perm: Tensor) -> bool:
    return torch.equal(perm, torch.arange(len(perm)))
