"""Labels: all distinct, and never that of the dense model."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from permllm.pipeline.matrix.labels import combination_labels, repeat_labels, single_label


def test_a_learner_called_dense_is_not_the_dense_model(read: Any) -> None:
    pipeline = read()
    layers = attrs.evolve(pipeline.layers, permutation=SimpleNamespace(name="dense"))
    assert single_label(attrs.evolve(pipeline, layers=layers)) == "permutation=dense"


scalars = st.one_of(
    st.integers(0, 3), st.booleans(), st.sampled_from(["dense", "a", "b", "1", "a b"])
)
components = st.builds(
    lambda name, block, passes: {"name": name, "block": block, "passes": passes},
    st.sampled_from(["a", "dense", "lcp"]),
    st.integers(1, 3),
    st.integers(1, 3),
)
values = st.lists(
    st.one_of(scalars, components, st.lists(components, max_size=2)),
    min_size=1,
    max_size=4,
    unique_by=repr,
)


@given(st.dictionaries(st.sampled_from(["x", "a.x", "b.y", "c"]), values, min_size=1, max_size=3))
def test_labels_are_distinct_and_never_dense(axes: dict[str, list[Any]]) -> None:
    traits = [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
    names = {
        key: {"a": several[0], "b c": several[-1]}
        for key, several in axes.items()
        if len(several) > 3
    }
    labels = combination_labels(traits, names, "lcp")
    assert len(set(labels)) == len(traits)
    assert "dense" not in labels


@given(
    st.lists(st.sampled_from(["a", "a #2", "a ##2", "a #3", "b"]), unique=True), st.integers(1, 4)
)
def test_labels_of_repeats_are_distinct(names: list[str], repeat: int) -> None:
    labels = repeat_labels(names, repeat)
    assert [repeats[0] for repeats in labels] == names
    assert len({label for repeats in labels for label in repeats}) == repeat * len(names)
