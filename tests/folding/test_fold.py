"""Folds are found in every architecture, hold in the whole model, and are refused else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from permllm.folding.fold import Fold, Producer, reordered, row_permutations
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import ARCHITECTURES, VOCABULARY, tiny_model

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def wholes(decoder: Decoder) -> dict[str, Fold]:
    return {name: fold for name, fold in Layout(decoder).folds().items() if isinstance(fold, Fold)}


@torch.no_grad()
def moved_model(
    decoder: Decoder, folds: dict[str, Fold], permutations: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of the model with the orders folded."""
    rows = row_permutations(decoder, folds, permutations)
    columns = {
        one: permutation
        for name, permutation in permutations.items()
        for one in decoder.groups[name].linears
    }
    tensors = dict(decoder.model.state_dict())
    for index, (title, layer) in enumerate(zip(decoder.layer_names, decoder.layers, strict=True)):
        linears = [linear for linear in decoder.linears.values() if linear.layer == index]
        own = dict(layer.named_parameters())
        new = reordered(layer, linears, own, rows=rows, columns=columns)
        assert all(tensor.shape == own[key].shape for key, tensor in new.items())
        tensors |= {f"{title}.{key}": tensor for key, tensor in new.items()}
    return tensors


@every_architecture
@torch.no_grad()
def test_the_whole_model_gives_the_same(name: str) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    folds = wholes(decoder)
    generator = torch.Generator().manual_seed(3)
    permutations = {group: fold.random_permutation(generator) for group, fold in folds.items()}
    tokens = torch.randint(VOCABULARY, (3, 20), generator=generator)
    expected = model(tokens).logits
    tensors = moved_model(decoder, folds, permutations)
    assert any(not torch.equal(tensors[key], old) for key, old in model.state_dict().items())
    model.load_state_dict(tensors)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


GROUPED = Fold(
    # Two heads of three channels on one key/value head, and two more on another.
    layout=torch.tensor([[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]),
    segments=(3, 3),
    producers=(Producer("v", torch.arange(6)[None]),),
)


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_orders_of_atoms_are_found_again(first: list[int], second: list[int]) -> None:
    order = torch.tensor([*first, *(3 + place for place in second)])
    found = GROUPED.atom_permutation(GROUPED.permutation(order))
    assert found is not None
    assert torch.equal(found, order)


@given(st.permutations(range(12)))
def test_an_order_folds_only_if_it_is_made_of_atoms(values: list[int]) -> None:
    permutation = torch.tensor(values)
    order = GROUPED.atom_permutation(permutation)
    if order is not None:
        assert torch.equal(GROUPED.permutation(order), permutation)


@pytest.mark.parametrize(
    "permutation",
    [
        [1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],  # one head of two that are tied
        [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5],  # key/value heads exchanged
        [3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11],  # query heads exchanged
        [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],  # no permutation
        [0, 1, 2],
    ],
)
def test_orders_that_do_not_fold(permutation: list[int]) -> None:
    assert GROUPED.atom_permutation(torch.tensor(permutation)) is None


def test_row_permutations_refuse_what_does_not_fold() -> None:
    decoder = Decoder.trace(tiny_model("llama-gqa"))
    folds = Layout(decoder).folds()
    for name in list(folds)[:2]:
        permutation = torch.arange(decoder.groups[name].channels).flip(0)
        with pytest.raises(ValueError, match="does not fold"):
            row_permutations(decoder, folds, {name: permutation})
