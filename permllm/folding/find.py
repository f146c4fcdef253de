"""The folds of a model: found by wiring, proved by running every layer.

:mod:`permllm.folding.producers` finds the rows that make an input in any layer, and
:mod:`permllm.folding.verify` runs the layer with those rows in another order.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from permllm.folding.fold import Fold, NoFold
from permllm.folding.producers import find_wiring
from permllm.folding.verify import prove
from permllm.models.decoder import Decoder


class FoldFinder:
    """Finds and proves the folds of a model's groups, layer by layer, each once.

    The wiring is looked for once for layers of one shape. Every layer is then run with its
    own weights in a random foldable order, on random hidden states; what does not come out
    the same does not fold. The same model gives the same folds.

    Args:
        decoder: the model, dense or pruned.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._wirings: dict[tuple[object, ...], tuple[int, dict[str, Fold | NoFold]]] = {}
        self._proved: dict[int, dict[str, Fold | NoFold]] = {}

    def of(self, index: int) -> dict[str, Fold | NoFold]:
        """The folds of a layer's groups, in order of execution."""
        if index not in self._proved:
            source, folds = self._wiring(index)
            names = self.decoder.layer_names
            moved = _renamed(folds, names[source], names[index])
            self._proved[index] = prove(self.decoder, index, moved)
        return self._proved[index]

    def _wiring(self, index: int) -> tuple[int, dict[str, Fold | NoFold]]:
        """What may fold in layers of this one's shape, and in which of them that was seen."""
        shape = layer_shape(self.decoder, index)
        if shape not in self._wirings:
            self._wirings[shape] = index, find_wiring(self.decoder, index)
        return self._wirings[shape]


def layer_shape(decoder: Decoder, index: int) -> tuple[object, ...]:
    """Equal for layers of one class whose linears have the same names and sizes."""
    title = f"{decoder.layer_names[index]}."
    linears = [linear for linear in decoder.linears.values() if linear.layer == index]
    groups = [group for group in decoder.groups.values() if group.layer == index]
    return (
        type(decoder.layers[index]),
        tuple(sorted((one.name.removeprefix(title), one.c_out, one.c_in) for one in linears)),
        tuple(sorted(group.name.removeprefix(title[:-1]) for group in groups)),
    )


def _renamed(folds: Mapping[str, Fold | NoFold], old: str, new: str) -> dict[str, Fold | NoFold]:
    """Folds of another layer."""

    def rename(name: str) -> str:
        return new + name.removeprefix(old)

    return {
        rename(group): fold
        if isinstance(fold, NoFold)
        else attrs.evolve(
            fold,
            producers=tuple(
                attrs.evolve(producer, linear=rename(producer.linear))
                for producer in fold.producers
            ),
        )
        for group, fold in folds.items()
    }
