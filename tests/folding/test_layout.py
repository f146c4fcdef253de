"""The layout of a decoder: found once, and carried to all who want it."""

from __future__ import annotations

import pytest

from permllm.errors import UserError
from permllm.folding import find, layout
from permllm.folding.constraints import RESIDUAL
from permllm.folding.fold import Fold, NoFold
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder


def test_each_layer_is_proved_once(llama: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[int] = []
    prove = find.prove

    def watched(decoder: Decoder, index: int, folds: object) -> object:
        proved.append(index)
        return prove(decoder, index, folds)

    monkeypatch.setattr(find, "prove", watched)
    llama.folds([1])
    llama.constraints(foldable=True, residual="original")
    llama.folds()
    assert sorted(proved) == [0, 1]


def test_the_residual_stream_is_looked_at_once(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Decoder] = []

    def refuse(decoder: Decoder) -> None:
        calls.append(decoder)
        raise UserError("the stream does not follow")

    monkeypatch.setattr(layout, "find_residual", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="the stream does not follow"):
            llama.constraints(foldable=False, residual="shared")
    assert len(calls) == 1


def test_without_options_nothing_is_looked_for(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "prove", None)
    assert not llama.constraints(foldable=False, residual="free")


def test_constraints_are_what_the_options_mean(llama: Layout) -> None:
    folds = llama.folds()
    folding = {name for name, fold in folds.items() if isinstance(fold, Fold)}
    gathered = {name for name, fold in folds.items() if isinstance(fold, NoFold)}
    assert folding
    assert gathered
    original = llama.constraints(foldable=True, residual="original")
    assert (set(original.folds), original.kept) == (folding, gathered)
    assert not any(map(original.leaves_free, folds))
    shared = llama.constraints(foldable=False, residual="shared")
    assert shared.shared == {RESIDUAL: gathered}
    assert {name for name in folds if shared.leaves_free(name)} == folding
