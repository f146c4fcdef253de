"""``permllm verify``, ``inspect``, ``generate`` and ``eval`` on exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SETTINGS = ["--set", "matrix={layers.permutation: [cp]}", "--set", "evaluate=[]"]


@pytest.fixture(scope="module")
def exports(permllm, project: Path) -> Path:
    words = [*SETTINGS, "--set", "export=[masked, permuted, sparse]", "--out", "saved"]
    done = permllm("run", "tiny.yaml", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    return project / "saved" / "runs" / "cp" / "exports"


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


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("masked", "no linear has more weights left than 2:4 keeps"),
        ("permuted", "is a permuted export of permllm"),
        ("sparse", "is a sparse export of permllm"),
    ],
)
def test_what_is_pruned_already_is_not_pruned_again(
    permllm, exports: Path, project: Path, tmp_path: Path, kind: str, said: str
) -> None:
    model = f"model={{source: directory, path: '{exports / kind}'}}"
    out = tmp_path / "again"
    done = permllm("run", "tiny.yaml", *SETTINGS, "--set", model, "--out", out, cwd=project)
    assert done.returncode == 2
    assert "pruned already" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_quantised_model_is_refused(permllm, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(project / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    model = f"model={{source: directory, path: '{folder}'}}"
    done = permllm("check", "tiny.yaml", "--set", model, cwd=project)
    assert done.returncode == 2
    assert "is quantised (gptq)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["verify"], ["inspect"]])
def test_what_is_no_export_is_refused(permllm, exports: Path, words: list[str]) -> None:
    done = permllm(*words, exports / "masked")
    assert done.returncode == 2
    assert "no finished export" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["permuted", "sparse"])
def test_inspect_lists_every_linear(permllm, exports: Path, kind: str) -> None:
    found = json.loads(permllm("inspect", exports / kind, "--json").stdout)
    assert found["format"] == kind
    linears = {row["linear"]: row for row in found["linears"]}
    assert len(linears) == 14
    down = linears["model.layers.0.mlp.down_proj"]
    assert (down["pattern"], down["input"], down["shape"]) == ("2:4", "folded", "32 × 48")
    dense = 32 * 48 * 4
    assert down["bytes"] == (dense if kind == "permuted" else dense * 17 // 32)
    table = permllm("inspect", exports / kind).stdout
    assert "gathered at" in table


@pytest.mark.parametrize("kind", ["masked", "permuted", "sparse"])
def test_every_export_is_measured_and_writes(
    permllm, exports: Path, project: Path, kind: str
) -> None:
    words = ["--text", project / "text.txt", "--length", 16, "--max-tokens", 128, "--json"]
    done = permllm("eval", exports / kind, *words)
    assert done.returncode == 0, done.stderr
    reference = permllm("eval", exports / "masked", *words)
    one, other = (
        json.loads(found.stdout)["figures"]["perplexity/text"] for found in (done, reference)
    )
    assert one == pytest.approx(other, rel=1e-4)
    written = permllm("generate", exports / kind, "The quick", "--tokens", 4)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The quick")
    assert written.stderr == ""


def test_a_finished_run_is_exported_again(permllm, exports: Path, tmp_path: Path) -> None:
    run, to = exports.parent, tmp_path / "again"
    done = permllm("export", run, "--format", "{name: sparse, dtype: float32}", "--to", to)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(to)
    verified = permllm("verify", to, "--against", exports / "masked")
    assert verified.returncode == 0, verified.stderr
    again = permllm("export", run, "--format", "sparse", "--to", to)
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_several_formats_are_written_at_once(permllm, exports: Path, tmp_path: Path) -> None:
    # A copy of the run without its other exports, which are for other tests.
    saved = exports.parents[2]
    shutil.copytree(saved, tmp_path / "saved", ignore=shutil.ignore_patterns("permuted", "sparse"))
    run = tmp_path / "saved" / exports.parent.relative_to(saved)
    done = permllm("export", run, "--format", "permuted", "--format", "sparse")
    assert done.returncode == 0, done.stderr
    written = [run / "exports" / kind for kind in ("permuted", "sparse")]
    assert done.stdout.split() == [str(path) for path in written]
    assert all((path / "permllm.json").exists() for path in written)
    refused = permllm("export", run, "--format", "masked", "--format", "sparse", "--to", run / "x")
    assert refused.returncode == 2
    assert "one folder" in refused.stderr


def test_names_are_whole_on_a_narrow_terminal(permllm, exports: Path) -> None:
    done = permllm("inspect", exports / "sparse")
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout


@pytest.mark.parametrize(
    ("where", "spec", "message"),
    [
        ("../../..", "sparse", "name one of its runs"),
        ("../../dense", "sparse", "holds no pruned model"),
        ("..", "spars", "did you mean 'sparse'"),
    ],
)
def test_bad_exports_are_refused(
    permllm, exports: Path, where: str, spec: str, message: str, tmp_path: Path
) -> None:
    folder = (exports / where).resolve()
    done = permllm("export", folder, "--format", spec, "--to", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
