"""Tensors of an export that were damaged after they were written are named."""

from __future__ import annotations

from pathlib import Path

NAME = "model.layers.0.mlp.up_proj.weight"


def test_edited_weights(copy: Path, edit, wrong) -> None:
    edit(copy, lambda tensors: tensors.update({NAME: tensors[NAME] * 1.001}))
    assert list(wrong(copy)) == [NAME]
    assert "its bytes are others" in wrong(copy)[NAME]


def test_weights_that_are_swapped(copy: Path, edit, wrong) -> None:
    other = NAME.replace("up", "gate")
    edit(copy, lambda tensors: tensors.update({NAME: tensors[other], other: tensors[NAME]}))
    assert set(wrong(copy)) == {NAME, other}


def test_nan(copy: Path, edit, wrong) -> None:
    edit(copy, lambda tensors: tensors[NAME].view(-1)[5:6].fill_(float("nan")))
    assert "NaN" in wrong(copy)[NAME]


def test_a_dense_weight(copy: Path, edit, wrong) -> None:
    edit(copy, lambda tensors: tensors[NAME].fill_(1))
    assert "not 2:4 in stored order" in wrong(copy)[NAME]
