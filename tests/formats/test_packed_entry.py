"""An entry says which tensors stand for a weight, and what of them cannot be."""

from __future__ import annotations

import attrs
import pytest

from permllm.core.codes import Grid
from permllm.formats.packed_entry import PackedEntry

ENTRY = PackedEntry("2:4", (3, 5, 24), values="int4", group_size=8, dtype="BF16")
SHAPES = {"w.values": (15, 6), "w.indices": (15, 3), "w.scales": (15, 3)}


def test_shapes_are_those_of_all_experts_one_below_the_other() -> None:
    assert ENTRY.grid == Grid(4, 8)
    assert {f"w{end}": shape for end, shape in ENTRY.stored_shapes().items()} == SHAPES
    assert list(ENTRY.wrong_parts("w", SHAPES)) == []
    eight = attrs.evolve(ENTRY, values="int8", group_size=None)
    assert eight.stored_shapes() == {".values": (15, 12), ".indices": (15, 3), ".scales": (15, 1)}
    plain = PackedEntry("2:4", (3, 5, 24))
    assert plain.grid is None
    assert plain.stored_shapes() == {".values": (15, 12), ".indices": (15, 3)}


@pytest.mark.parametrize(
    ("change", "shapes", "field", "why"),
    [
        ({"dtype": None}, {}, ".dtype", "None is no type of weights"),
        ({"dtype": "I64"}, {}, ".dtype", "I64 is no type of weights"),
        ({"group_size": 0}, {}, ".group_size", "0 is no number of channels"),
        ({"group_size": 6}, {}, "", "4 must divide them"),
        ({"shape": ()}, {}, ".shape", "the shape of no weight"),
        ({}, {"w.scales": None}, "", "the files hold no scales of it"),
        ({}, {"w.scales": (15, 1)}, ".shape", r"does not fit scales of (15, 1)"),
        ({}, {"w.values": (15, 12)}, ".shape", r"does not fit values of (15, 12)"),
        ({"values": "int8"}, {}, ".shape", r"does not fit values of (15, 6)"),
    ],
)
def test_what_cannot_be_is_named(
    change: dict[str, object], shapes: dict[str, object], field: str, why: str
) -> None:
    there = {name: shape for name, shape in {**SHAPES, **shapes}.items() if shape is not None}
    found = list(attrs.evolve(ENTRY, **change).wrong_parts("w", there))  # type: ignore[arg-type]
    assert len(found) == 1, found
    assert found[0][0] == field
    assert why in found[0][1]
