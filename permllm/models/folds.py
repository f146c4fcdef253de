"""The folds of a model: found by wiring, proved by running every layer.

:mod:`permllm.models.wiring` finds the rows that make an input in any layer, and
:mod:`permllm.models.proving` runs the layer with those rows in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from permllm.models.decoder import Decoder
from permllm.models.folding import Fold, NoFold
from permllm.models.proving import prove
from permllm.models.wiring import find_wiring


def find_folds(decoder: Decoder, layers: Iterable[int] | None = None) -> dict[str, Fold | NoFold]:
    """Find and prove the folds of a model's groups.

    The wiring is looked for once for layers of one shape. Every layer is then run with its
    own weights in a random foldable order, on random hidden states; what does not come out
    the same does not fold. The same model gives the same folds.

    Args:
        decoder: the model, dense or pruned.
        layers: those whose groups are of interest; all where it is None.

    Returns:
        by group, in order of execution.
    """
    known: dict[tuple[object, ...], tuple[int, dict[str, Fold | NoFold]]] = {}
    found: dict[str, Fold | NoFold] = {}
    for index in range(len(decoder.layers)) if layers is None else layers:
        shape = layer_shape(decoder, index)
        if shape not in known:
            known[shape] = index, find_wiring(decoder, index)
        source, folds = known[shape]
        moved = _renamed(folds, decoder.layer_names[source], decoder.layer_names[index])
        found |= prove(decoder, index, moved)
    return found


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
