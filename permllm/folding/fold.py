"""Folds: which orders of a group's input channels the layer itself can deliver.

The input of ``down_proj`` is made channel by channel of rows of ``gate_proj`` and
``up_proj``; with those rows stored in another order it arrives in that order, and no gather
is needed at run time. Here such orders are worked out and applied to parameters;
:mod:`permllm.folding.find` finds what folds in a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import torch
from torch import Tensor, nn

from permllm.core.permutations import is_permutation
from permllm.models.decoder import Decoder
from permllm.models.linears import Linear, biases


@attrs.frozen(eq=False)
class Producer:
    """Rows of a linear that make the channels of another one's input.

    Attributes:
        linear: the full name.
        rows: ``LongTensor[k, atoms]``: the ``k`` rows that belong to each atom; two where
            gate and up are one linear.
    """

    linear: str
    rows: Tensor


@attrs.frozen(eq=False)
class Fold:
    """How a group's input is made, so which orders of it can be stored in the producers.

    An *atom* is what producers can move as one: the channels that the same rows make.
    With grouped queries these are as many as query heads share a key/value head, the
    atom's *lanes*; else an atom is one channel.

    Attributes:
        layout: ``LongTensor[lanes, atoms]``, the channel of each lane of each atom. Each
            channel stands in it once; atoms are in order of their first channel.
        segments: numbers of consecutive atoms that may be exchanged among themselves, such
            as those of a head; their sum is the number of atoms.
        producers: the linears whose rows move.
    """

    layout: Tensor
    segments: tuple[int, ...]
    producers: tuple[Producer, ...]

    def atom_permutation(self, permutation: Tensor) -> Tensor | None:
        """The order of atoms that delivers an order of channels, or None if there is none.

        Args:
            permutation: ``LongTensor[C_in]``.

        Returns:
            ``LongTensor[atoms]``: with ``atoms_at``, ``permutation[layout[l, a]]`` is
            ``layout[l, atoms_at[a]]`` for all lanes and atoms.
        """
        lanes, atoms = self.layout.shape
        permutation = permutation.to(self.layout.device)
        if not is_permutation(permutation, lanes * atoms):
            return None
        atom_of = torch.empty_like(permutation)
        atom_of[self.layout] = torch.arange(atoms).expand(lanes, atoms)
        atoms_at = atom_of[permutation[self.layout[0]]]
        if not torch.equal(permutation[self.layout], self.layout[:, atoms_at]):
            return None
        segment = torch.arange(len(self.segments)).repeat_interleave(torch.tensor(self.segments))
        return atoms_at if torch.equal(segment[atoms_at], segment) else None

    def permutation(self, atoms: Tensor) -> Tensor:
        """The order of channels that an order of atoms delivers.

        Args:
            atoms: ``LongTensor[atoms]``, within segments.

        Returns:
            ``LongTensor[C_in]``.
        """
        permutation = torch.empty(self.layout.numel(), dtype=torch.long)
        permutation[self.layout] = self.layout[:, atoms]
        return permutation

    def random_permutation(self, generator: torch.Generator) -> Tensor:
        """Any foldable order: ``LongTensor[C_in]``."""
        parts, first = [], 0
        for size in self.segments:
            parts.append(first + torch.randperm(size, generator=generator))
            first += size
        return self.permutation(torch.cat(parts))


@attrs.frozen
class NoFold:
    """A group whose order has to be gathered.

    Attributes:
        reason: why, in words that go on after "is gathered: ".
    """

    reason: str


def row_permutations(
    decoder: Decoder, folds: Mapping[str, Fold | NoFold], permutations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The orders of rows that deliver the orders of some groups' channels.

    Args:
        decoder: the model.
        folds: by group.
        permutations: ``LongTensor[C_in]`` by group; all of them foldable.

    Returns:
        by linear, ``LongTensor[C_out]``: place ``i`` takes row ``permutation[i]``.

    Raises:
        ValueError: an order is not foldable.
    """
    by_linear: dict[str, Tensor] = {}
    for name, permutation in permutations.items():
        fold = folds[name]
        atoms = None if isinstance(fold, NoFold) else fold.atom_permutation(permutation)
        if isinstance(fold, NoFold) or atoms is None:
            raise ValueError(f"the order of {name} does not fold")
        for producer in fold.producers:
            rows = torch.arange(decoder.linears[producer.linear].c_out)
            own = by_linear.setdefault(producer.linear, rows)
            # Each row belongs to one group at most, or the proof would have failed.
            own[producer.rows] = producer.rows[:, atoms]
    return by_linear


def reordered(
    layer: nn.Module,
    linears: Iterable[Linear],
    parameters: Mapping[str, Tensor],
    *,
    rows: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The parameters of a layer that change when rows and columns are put in other orders.

    Args:
        layer: the layer.
        linears: the linears of the layer.
        parameters: the layer's, by name within the layer.
        rows: ``LongTensor[C_out]`` by linear; biases go with the rows.
        columns: ``LongTensor[C_in]`` by linear.

    Returns:
        new tensors by parameter name, in the parameters' shapes and dtypes.
    """
    new: dict[str, Tensor] = {}

    def target(name: str) -> Tensor:
        return new.setdefault(name, parameters[name].detach().clone())

    for linear in linears:
        if linear.name in columns:
            matrix = linear.view(target(linear.parameter))
            matrix.copy_(matrix[:, columns[linear.name].to(matrix.device)])
        if linear.name in rows:
            matrix = linear.view(target(linear.parameter))
            own = rows[linear.name].to(matrix.device)
            matrix.copy_(matrix[own])
            for name in biases(layer, linear):
                bias = target(name)
                bias = bias if linear.index is None else bias[linear.index]
                bias.copy_(bias[own])
    return new
