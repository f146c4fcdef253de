"""The Python interface: a pipeline file as the command line runs it, and a model in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import permllm
from permllm import UserError
from permllm.core.patterns import Pattern, is_nm
from permllm.models.decoder import Decoder
from permllm.observers.events import Events
from permllm.runs.events import read_events
from permllm.testing.models import save_tiny, tiny_model
from permllm.testing.tokenizers import byte_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, again and again\n" * 40

FILE = """\
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 2, length: 16, held_out: 0}
pattern: "2:4"
layers: {permutation: none}
evaluate: []
track: {}
"""


def test_a_file_is_run_with_settings_to_a_folder(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(FILE)
    results = permllm.run(file, ["pattern=1:4"], out=out, cache=tmp_path / "kept")
    assert [run.label for run in results.runs] == ["dense", "none"]
    assert {layer.pattern for layer in results["none"].layers} == {"1:4"}
    assert (out / "report.md").exists()
    assert (tmp_path / "kept").is_dir()
    assert not (out / "cache").exists()
    assert read_events(out)[-1]["event"] == "plan_finished"


def test_runs_find_in_a_store_what_others_computed(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    file = tmp_path / "tiny.yaml"
    file.write_text(FILE)
    for out in ("one", "two"):
        permllm.run(file, out=tmp_path / out, cache=f"memory://{tmp_path}")
    kept, found = (
        {path.name for path in (tmp_path / out / "cache").glob("*/*.*.*")} for out in ("one", "two")
    )
    assert found
    assert found <= kept
    with pytest.raises(UserError, match="no URL of a store"):
        permllm.run(file, out=tmp_path / "three", cache="nobody://x")
    assert not (tmp_path / "three").exists()


def test_a_model_in_memory_is_pruned_in_place(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    pipeline = {
        "pattern": "2:4",
        "layers": {"permutation": "greedy", "skip": ["*.o_proj"]},
        "calibration": {
            "dataset": {"name": "text", "path": str(tmp_path / "text.txt")},
            "sequences": 2,
            "length": 16,
            "held_out": 0,
        },
    }
    model, dense = tiny_model("llama"), tiny_model("llama")
    pruned = permllm.prune(
        model, byte_tokenizer(), pipeline, observers=[Events()], out=tmp_path / "out"
    )
    assert pruned.model is model
    told = [event["event"] for event in read_events(tmp_path / "out")]
    assert (told[0], told[-2:]) == ("plan_started", ["run_finished", "plan_finished"])
    decoder = Decoder.trace(model)
    assert {layer.linear for layer in pruned.layers} == {
        name for name in decoder.linears if not name.endswith("o_proj")
    }
    for layer in pruned.layers:
        weight = decoder.weight(layer.linear)
        assert is_nm(weight[:, pruned.permutations[layer.group]], Pattern(2, 4))
        before = dense.get_parameter(f"{layer.linear}.weight")
        assert bool(((weight == before) | (weight == 0)).all())
    skipped = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(model.get_parameter(skipped), dense.get_parameter(skipped))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(16, mean_resizing=False)
    with pytest.raises(UserError, match="do not belong together"):
        permllm.prune(model, byte_tokenizer(), {"pattern": "2:4"})


@pytest.mark.parametrize("quiet", [False, True])
def test_pruning_shows_progress_unless_nobody_wants_it(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    pipeline = {
        "pattern": "2:4",
        "layers": {"permutation": "none"},
        "calibration": {
            "dataset": {"name": "text", "path": str(tmp_path / "text.txt")},
            "sequences": 2,
            "length": 16,
            "held_out": 0,
        },
    }
    observers = {"observers": ()} if quiet else {}
    permllm.prune(tiny_model("llama"), byte_tokenizer(), pipeline, **observers)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("pruned in" in err) != quiet
    assert "dense" not in err
    assert "folder" not in err
