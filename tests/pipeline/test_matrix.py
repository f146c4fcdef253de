"""The matrix: its combinations, their labels, and mistakes at their own places."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.pipeline.labels import combination_labels, single_label
from permllm.pipeline.matrix import Cell, expand
from permllm.registry import Registry


@pytest.fixture
def cells(read: Any, toys: Registry) -> Any:
    def expanded(text: str, *settings: str, **options: bool) -> tuple[Cell, ...]:
        return expand(read(text, *settings, **options), toys)

    return expanded


def labels(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.label for cell in cells]


def test_values_take_their_places(cells: Any) -> None:
    none, cp, lcp = cells(
        "matrix: {layers.permutation: [none, cp, {name: lcp, preset: paper, block: 32}]}"
    )
    assert labels((none, cp, lcp)) == ["none", "cp", "lcp"]
    assert none.pipeline.layers.permutation.name == "none"
    assert (lcp.pipeline.layers.permutation.block, lcp.pipeline.layers.permutation.passes) == (
        32,
        50,
    )
    assert lcp.pipeline.matrix is None
    assert lcp.options["layers.permutation"]["block"] == 32


def test_the_first_key_is_slowest(cells: Any) -> None:
    found = cells("matrix: {pattern: [2:4, 4:8], layers.permutation: [cp, lcp]}")
    assert labels(found) == ["2:4 cp", "2:4 lcp", "4:8 cp", "4:8 lcp"]
    assert [str(cell.pipeline.pattern) for cell in found] == ["2:4", "2:4", "4:8", "4:8"]


def test_a_single_value_is_not_said(cells: Any) -> None:
    found = cells("matrix: {pattern: [2:4], layers.permutation: [cp, lcp]}")
    assert labels(found) == ["cp", "lcp"]
    assert labels(cells("matrix: {pattern: [4:8]}")) == ["4:8"]


def test_options_tell_namesakes_apart(cells: Any) -> None:
    found = cells("matrix: {layers.permutation: [lcp, {name: lcp, block: 32}, none]}")
    assert labels(found) == ["lcp(block=64)", "lcp(block=32)", "none"]


def test_numbers_carry_their_key(cells: Any) -> None:
    found = cells("matrix: {layers.permutation.block: [32, 64], layers.window: [1, all]}")
    assert labels(found)[:2] == ["block=32 window=1", "block=32 window=all"]
    assert found[2].pipeline.layers.permutation.block == 64


def test_no_label_is_dense(cells: Any) -> None:
    found = cells("matrix: {layers.inputs: [pruned, dense]}")
    assert labels(found) == ["layers.inputs=pruned", "layers.inputs=dense"]


def test_without_a_matrix_the_learner_is_the_label(cells: Any) -> None:
    assert labels(cells("layers: {permutation: cp}")) == ["cp"]
    assert labels(cells("layers: {permutation: cp, pruner: sparsegpt}")) == ["cp+sparsegpt"]
    assert single_label("dense", "mask") == "permutation=dense"


def test_a_required_key_may_come_from_the_matrix(cells: Any) -> None:
    text = "model: {source: hub, id: x}\nmatrix: {pattern: [1:4, 2:4]}\n"
    found = cells(text, whole=True)
    assert [str(cell.pipeline.pattern) for cell in found] == ["1:4", "2:4"]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("{layer.permutation: [none]}", "3:10: unknown key 'layer'"),
        ("{layers.permutaton: [none]}", "3:10: unknown key 'permutaton'"),
        ("{layers.permutation: [none, lpc]}", "3:37: unknown permutation 'lpc'"),
        ("{layers.permutation: [none, {name: lcp, pases: 3}]}", "3:49: unknown option 'pases'"),
        ("{layers.permutation: [none, {name: none}]}", "3:37: the matrix has this value"),
        ("{seed: [1, x]}", "3:20: expected a whole number"),
        ("{seed: 1}", "3:16: the matrix needs a list of values for 'seed'"),
        ("{seed: []}", "3:16: the matrix needs a list"),
        ("{seed..x: [1]}", "3:10: 'seed..x' is no dotted key"),
        ("{model.path: [a, b]}", "3:10: 'model.path' cannot vary"),
        ("[seed]", "3:9: the matrix must map dotted keys to lists"),
        (f"{{seed: {list(range(1001))}}}", "3:1: the matrix has 1001 combinations"),
        (f"{{seed: {[0] * 32}, layers.window: {[1] * 32}}}", "1024 combinations"),
        ("{layers.permutation: [lcp, none], layers.permutation.block: [2]}", "3:43: unknown opt"),
    ],
)
def test_mistakes_are_placed_in_the_matrix(refused: Any, matrix: str, message: str) -> None:
    assert message in refused(f"matrix: {matrix}")


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
    found = combination_labels(axes)
    assert len(set(found)) == len(found)
    assert "dense" not in found
