"""Layouts that several files look at."""

from __future__ import annotations

from typing import Any

import pytest

from permllm.folding.fold import Fold, NoFold
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model


@pytest.fixture
def llama() -> Layout:
    """Of a model with two query heads to each key/value head."""
    return Layout(Decoder.trace(tiny_model("llama-gqa")))


@pytest.fixture
def with_activation():
    """The folds of a model with other activations in some layers."""

    def call(activation: Any, layers: slice = slice(None)) -> dict[str, Fold | NoFold]:
        model = tiny_model("llama")
        for layer in model.model.layers[layers]:
            layer.mlp.act_fn = activation
        return Layout(Decoder.trace(model)).folds()

    return call
