"""The runs of a matrix, and what differs between the repeats of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from permllm.pipeline.dotted_keys import value_of
from permllm.pipeline.matrix.labels import single_label
from permllm.pipeline.matrix.shape import SEEDS
from permllm.pipeline.plain import ABSENT
from permllm.pipeline.resolving import Resolved
from permllm.pipeline.schema import Pipeline


@attrs.frozen
class Cell:
    """One run of a matrix.

    Attributes:
        label: the values that tell it apart from the other runs.
        options: every dotted key that the matrix sets in any run, as far as this one has
            it, with this one's resolved plain value; the seeds, too, of repeated runs.
        pipeline: the pipeline with these values, and no matrix.
        setting: the label that all repeats of one setting share.
        repeat: which repeat of its setting it is, from 0.
    """

    label: str
    options: dict[str, Any]
    pipeline: Pipeline
    setting: str = attrs.field(default=attrs.Factory(lambda self: self.label, takes_self=True))
    repeat: int = 0


def only_cell(pipeline: Pipeline) -> Cell:
    """The run of a pipeline without a matrix."""
    return Cell(single_label(pipeline), {}, pipeline)


def repeated(
    combination: Resolved, keys: Iterable[str], setting: str, labels: Iterable[str], count: int
) -> Iterator[Cell]:
    """The repeats of a combination, each with its own seeds.

    Args:
        combination: what is repeated.
        keys: what the matrix sets.
        setting, labels: its label, and that of each repeat.
        count: how many there are.
    """
    pipeline, calibration = combination.pipeline, combination.pipeline.calibration
    options = {key: value_of(combination.plain, key) for key in keys}
    options = {key: value for key, value in options.items() if value is not ABSENT}
    for number, label in enumerate(labels):
        seed = derived_seed(pipeline.seed, "seed", number)
        text_seed = derived_seed(calibration.seed, "calibration.seed", number)
        seeds = dict(zip(SEEDS, (seed, text_seed), strict=True)) if count > 1 else {}
        own = attrs.evolve(
            pipeline, seed=seed, calibration=attrs.evolve(calibration, seed=text_seed)
        )
        yield Cell(label, options | seeds, own, setting, number)


def derived_seed(seed: int, key: str, repeat: int) -> int:
    """The seed of a repeat: ``seed`` itself for the first, which has the number 0.

    The others have the first five bytes, as a big-endian number, of the SHA-256 of
    ``"KEY=SEED repeat=NUMBER"``.

    >>> derived_seed(7, "seed", 0), derived_seed(7, "seed", 1)
    (7, 1048627504709)
    """
    if repeat == 0:
        return seed
    text = f"{key}={seed} repeat={repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")
