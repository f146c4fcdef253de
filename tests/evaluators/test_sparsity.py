from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.contexts.evaluation import EvaluationContext
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.errors import RunFailed
from permllm.evaluators.sparsity import Sparsity, nm_violations
from permllm.results import Cost, LayerReport
from permllm.runs.windows import PrunedWindow, save_window, window_path
from permllm.testing import check_evaluator
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer

ENTRIES = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
"""Of the matrices in the layers of ``llama-gqa``; embeddings are none of these."""


def test_contract() -> None:
    check_evaluator(Sparsity())


def save(folder: Path, index: int, pattern: Pattern, *, wrong: int = 0) -> None:
    """A window with one linear ``[6, 16]`` that is N:M in a random order but for some groups."""
    generator = torch.Generator().manual_seed(index)
    weight = torch.randn(6, 16, generator=generator)
    permutation = torch.randperm(16, generator=generator)
    permuted = weight * nm_mask(weight.abs(), pattern)
    for row in range(wrong):
        permuted[row, : pattern.m] = 1
    report = LayerReport(f"l{index}", f"g{index}", (6, 16), str(pattern), 0.7, 0.8, 0.5, 0.1)
    window = PrunedWindow(
        {f"l{index}": permuted[:, invert(permutation)]},
        {f"g{index}": permutation},
        {},
        (report,),
        Cost(1.0),
    )
    save_window(window_path(folder, index), window)


def test_it_counts_on_the_saved_tensors(tmp_path: Path) -> None:
    save(tmp_path, 0, Pattern(2, 4))
    save(tmp_path, 1, Pattern(1, 4))
    found = Sparsity().evaluate(
        tiny_model("llama-gqa"), byte_tokenizer(), EvaluationContext(saved=tmp_path)
    )
    assert found == {"sparsity": (0.5 + 0.75) * 96 / ENTRIES, "sparsity/nm_violations": 0}


def test_it_finds_groups_that_break_the_pattern(tmp_path: Path) -> None:
    save(tmp_path, 0, Pattern(2, 4), wrong=3)
    found = Sparsity().evaluate(
        tiny_model("llama-gqa"), byte_tokenizer(), EvaluationContext(saved=tmp_path)
    )
    assert found == {"sparsity": (48 - 6) / ENTRIES, "sparsity/nm_violations": 3}


def test_zeros_of_a_dense_model() -> None:
    model = tiny_model("llama-gqa")
    context = EvaluationContext()
    assert Sparsity().evaluate(model, byte_tokenizer(), context) == {"sparsity": 0}
    for layer in model.model.layers:
        for linear in (layer.mlp.up_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
            linear.weight.data.zero_()
    model.lm_head.weight.data.zero_()
    # Of a layer's 3 × 32·48 + 2 × 32·32 + 2 × 32·16 weights, the first three matrices.
    expected = 3 * 48 / (3 * 48 + 2 * 32 + 2 * 16)
    found = Sparsity().evaluate(model, byte_tokenizer(), context)
    assert found == {"sparsity": pytest.approx(expected)}


def test_nm_violations() -> None:
    weight = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1, 1, 1]])
    assert nm_violations(weight, Pattern(2, 4)) == 2
    assert nm_violations(weight, Pattern(3, 4)) == 1
    assert nm_violations(weight, Pattern(1, 2)) == 4


def test_missing_and_broken_tensors_fail(tmp_path: Path) -> None:
    context = EvaluationContext(saved=tmp_path)
    with pytest.raises(RunFailed, match="no saved tensors"):
        Sparsity().evaluate(tiny_model("llama-gqa"), byte_tokenizer(), context)
    (tmp_path / "000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunFailed, match=r"000\.safetensors cannot be read"):
        Sparsity().evaluate(tiny_model("llama-gqa"), byte_tokenizer(), context)
