"""Layers stay on the device where their copies fit, and visit it where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from permllm.api import run
from permllm.evaluators.sparsity import Sparsity
from permllm.models.decoder import Decoder
from permllm.runner import placing
from permllm.runner.placing import place_layers
from permllm.testing.models import tiny_model
from permllm.world import Place, World

CPU = torch.device("cpu")

SEARCH = {"name": "cp", "rounds": 2, "steps": 2}
LCP = {"name": "lcp", "block": 8, "steps": 3, "batch": 2, "start": SEARCH}


@pytest.mark.parametrize(
    ("stream", "free", "stays"),
    [("always", 2**40, False), ("never", 0, True), ("auto", 2**40, True), ("auto", 1000, False)],
)
def test_layers_stay_where_they_fit(
    stream: str, free: int, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "free_memory", lambda device: free)
    decoder = Decoder.trace(tiny_model("llama").to(torch.bfloat16), None, torch.float32)
    place_layers(decoder, CPU, range(1, 2), stream)
    first, second = (next(layer.parameters()).dtype for layer in decoder.layers)
    assert first == torch.bfloat16
    assert second == (torch.float32 if stays else torch.bfloat16)


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "free_memory", lambda device: 2**20)
    decoder = Decoder.trace(tiny_model("llama").to(torch.bfloat16), None, torch.float32)
    copied = decoder.residency.copied_bytes(range(2), CPU)
    monkeypatch.setattr(placing, "SHARE", copied / 2**20)
    alone, beside = (World(places=(Place("a", 1),) * count) for count in (1, 2))
    assert place_layers(decoder, CPU, None, "auto", alone)
    decoder.place(CPU, ())
    assert not place_layers(decoder, CPU, None, "auto", beside)


def halved(folder: Path) -> None:
    """Save the model of a folder in bfloat16."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {name: one for file in files for name, one in load_file(file).items()}


@pytest.mark.parametrize(
    ("learner", "pruner", "window"),
    [
        (SEARCH, "mask", 1),
        (SEARCH, "sparsegpt", "all"),
        (LCP, "sparsegpt", 1),
        (LCP, "mask", "all"),
        (SEARCH, {"name": "learned-mask", "steps": 3}, "all"),
        (LCP | {"preset": "paper", "recompute": True}, {"name": "distil", "steps": 3}, "all"),
    ],
)
def test_streamed_runs_are_the_same_to_the_bit(
    learner: Any,
    pruner: Any,
    window: Any,
    write_pipeline: Callable[..., Path],
    tmp_path: Path,
) -> None:
    layers = {"permutation": learner, "pruner": pruner, "window": window}
    path = write_pipeline("llama-gqa", layers=layers, export=["permuted", "masked"])
    halved(path.parent / "llama-gqa")
    results = {}
    for stream in ("always", "never"):
        out = tmp_path / stream
        (result,) = run(path, [f"stream={stream}"], out=out).runs[1:]
        exported = tensors_of(out / result.exports["permuted"])
        assert {one.dtype for one in exported.values() if one.is_floating_point()} == {
            torch.bfloat16
        }
        results[stream] = result.figures, result.layers, exported
    one, other = results["always"], results["never"]
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(tensor, other[2][name]) for name, tensor in one[2].items())


def test_an_evaluator_that_needs_no_model_leaves_it_at_home(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline("llama-gqa", evaluate=["sparsity"], layers={"permutation": "none"})
    halved(path.parent / "llama-gqa")
    found = []

    def look(self: Sparsity, model: Any, *others: Any) -> dict[str, float]:
        found.append({one.dtype for one in model.model.layers.parameters()})
        return {"sparsity": 0.5}

    monkeypatch.setattr(Sparsity, "evaluate", look)
    run(path, ["stream=never"], out=tmp_path / "out")
    dense, pruned = found
    assert dense == {torch.bfloat16}
    assert torch.bfloat16 in pruned  # what is not pruned
