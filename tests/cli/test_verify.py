"""``permllm verify``: what an export is, and what it computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize("kind", ["permuted", "sparse"])
def test_a_fresh_export_is_verified(permllm, exports: Path, kind: str) -> None:
    done = permllm("verify", exports / kind, "--against", exports / "masked")
    assert done.returncode == 0, done.stderr
    assert "tensors are those that were exported" in done.stdout
    assert "2:4 in stored order" in done.stdout
    assert done.stdout.count("logits differ") == 2
    as_json = permllm("verify", exports / kind, "--json")
    facts = json.loads(as_json.stdout)
    assert facts["patterns"] == ["2:4"]
    assert facts["logits"]["recorded"]["argmax"] == 1.0


def test_exports_are_compared_on_a_text(permllm, exports: Path, project: Path) -> None:
    text = project / "compared.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, again and again\n" * 40)
    words = ["verify", exports / "permuted", "--text", text]
    done = permllm(*words, "--against", exports / "masked", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    ours, theirs = facts["perplexity"].values()
    assert ours > 1
    assert ours == pytest.approx(theirs, rel=1e-4)
    plain = permllm(*words, "--against", exports / "masked")
    assert f"perplexity on {text} is {ours:.6g}; that of" in plain.stdout
    other = permllm(*words, "--against", project / "model", "--json")
    assert other.returncode == 2
    assert "does not compute the same" in other.stderr
    ours, dense = json.loads(other.stdout)["perplexity"].values()
    assert ours != pytest.approx(dense, rel=1e-4)


def test_a_text_to_compare_on_wants_two_models(permllm, exports: Path) -> None:
    done = permllm("verify", exports / "permuted", "--text", "any.txt")
    assert done.returncode == 2
    assert "name the other with --against" in done.stderr


def test_an_edited_tensor_is_named(permllm, exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(exports / "permuted", folder)
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = torch.ones_like(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})
    done = permllm("verify", folder)
    assert done.returncode == 2
    assert name in done.stderr
    assert "not 2:4 in stored order" in done.stderr


def test_a_swap_of_two_tensors_is_named(permllm, exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "swapped"
    shutil.copytree(exports / "permuted", folder)
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    one, two = (name for name in tensors if name.endswith("gate_proj.weight"))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, path, metadata={"format": "pt"})
    done = permllm("verify", folder)
    assert done.returncode == 2
    assert "its bytes are others than were exported" in done.stderr


def test_another_model_is_told_apart(permllm, exports: Path, project: Path) -> None:
    done = permllm("verify", exports / "permuted", "--against", project / "model")
    assert done.returncode == 2
    assert "does not compute the same" in done.stderr


@pytest.mark.parametrize("words", [["verify"], ["inspect"]])
def test_what_is_no_export_is_refused(permllm, project: Path, words: list[str]) -> None:
    done = permllm(*words, project / "model")
    assert done.returncode == 2
    assert "no finished export" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_masked_export_is_verified_and_inspected(permllm, exports: Path, tmp_path: Path) -> None:
    done = permllm("verify", exports / "masked")
    assert done.returncode == 0, done.stderr
    assert "14 linears were pruned to 2:4 in their learned order\n" in done.stdout
    assert "100.00% of the most likely tokens are the same" in done.stdout
    found = json.loads(permllm("inspect", exports / "masked", "--json").stdout)
    assert (found["format"], len(found["linears"])) == ("masked", 14)
    assert {row["input"] for row in found["linears"]} == {"stored"}
    copied = shutil.copytree(exports / "masked", tmp_path / "masked")
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = permllm("verify", copied)
    assert done.returncode == 2
    assert "its bytes are others than were exported" in done.stderr


def test_nothing_in_an_export_tells_of_the_machine(exports: Path, project: Path) -> None:
    for kind in ("masked", "permuted", "sparse"):
        for path in (exports / kind).iterdir():
            if path.suffix != ".safetensors":
                assert str(project) not in path.read_text(encoding="utf-8"), path
