"""Exports of tiny models, some of which vLLM serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from permllm.testing.exporters import pruned_export, write_export
from permllm.testing.models import VOCABULARY, tiny_model

# Before vLLM is imported: it reads them once.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)


def kept_order(name: str, group: Any) -> torch.Tensor:
    return torch.arange(group.channels)


def random_order(name: str, group: Any) -> torch.Tensor:
    return torch.randperm(group.channels, generator=torch.Generator().manual_seed(len(name)))


def wide_model(name: str) -> Any:
    """A model whose attention heads are as wide as vLLM wants them on a CPU."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, name)(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=None,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


ORDERS = {"kept": kept_order, "random": random_order}

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports a tiny model: of a name, in a format, with kept or random orders.

    Linears whose names end with ``dense`` are not pruned. What is left are the exporter's options.
    """

    def call(name: str, form: str, order: str = "random", dense: str = "", **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(form)
        model = wide_model(name) if name.endswith("Config") else tiny_model(name)
        context = pruned_export(model, ORDERS[order])
        for linear in [one for one in context.patterns if dense and one.endswith(dense)]:
            context.decoder.weight(linear).normal_(std=0.1)
            del context.patterns[linear]
        write_export(form, context, folder, **options)
        return folder

    return call
