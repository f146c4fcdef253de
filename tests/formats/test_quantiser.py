"""Exports that transformers opens by itself, once permllm was imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import permllm
from permllm import UserError
from permllm.core.patterns import Pattern
from permllm.exporters.permuted import Permuted
from permllm.exporters.sparse import Sparse
from permllm.formats import export_files
from permllm.formats.manifest import MANIFEST
from permllm.sparse.linear import SparseLinear
from permllm.testing.exporters import pruned_export
from permllm.testing.models import tiny_model

TOKENS = torch.arange(1, 25).view(2, 12)
MODELS = ("llama", "llama-gqa", "opt", "gpt2", "phi3", "mixtral", "qwen2-moe", "gpt-oss", "llama4")


def kept_order(name: str, group: Any) -> torch.Tensor:
    return torch.arange(group.channels)


def random_order(name: str, group: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randperm(group.channels, generator=generator)


def exported(
    model: str,
    exporter: Sparse | Permuted,
    folder: Path,
    pattern: Pattern | None = None,
    order: Callable[..., Any] = random_order,
) -> Path:
    folder.mkdir(exist_ok=True)
    exporter.export(pruned_export(tiny_model(model), order, pattern), folder)
    return folder


def opened(folder: Path, **options: Any) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("llama-gqa", Sparse(), tmp_path_factory.mktemp("sparse"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "exporter",
    [Sparse(), Permuted(), Sparse(values="int8"), Sparse(values="int4", group_size=8)],
    ids=["sparse", "permuted", "int8", "int4"],
)
def test_from_pretrained_gives_what_load_gives(
    name: str, exporter: Sparse | Permuted, tmp_path: Path
) -> None:
    order = kept_order if name in {"gpt-oss", "llama4"} else random_order
    folder = exported(name, exporter, tmp_path, order=order)
    ordinary = not (folder / "permllm.safetensors").is_file()
    expected = permllm.load(folder, sparse=not ordinary)
    model = opened(folder)
    assert type(model) is type(expected.model)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected.model(TOKENS).logits)
    packed = {n for n, module in model.named_modules() if isinstance(module, SparseLinear)}
    if not ordinary:
        assert packed == {one.name for one in expected.linears if one.runs == "cpu kernel"}
        assert model.hf_quantizer.linears == expected.linears
    else:
        assert not packed, "an ordinary checkpoint"


@pytest.mark.parametrize("pattern", [Pattern(1, 4), Pattern(4, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_patterns_and_dtypes(pattern: Pattern, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = exported("llama", Sparse(), tmp_path, pattern)
    model = opened(folder, dtype=dtype)
    expected = permllm.load(folder, sparse=True, dtype=dtype)
    assert model.dtype == dtype
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected.model(TOKENS).logits)
    assert model.hf_quantizer.linears == expected.linears


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_stay_codes(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = exported("llama", Sparse(values="int4", group_size=8, dtype="bfloat16"), tmp_path)
    model = opened(folder, dtype=dtype)
    expected = permllm.load(folder, sparse=True, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected.model(TOKENS).logits)
    assert model.hf_quantizer.linears == expected.linears
    for one in (model, expected.model):
        held = [part for part in one.modules() if isinstance(part, SparseLinear)]
        assert len(held) == (0 if dtype == torch.float16 else 14)
        for linear in held:
            assert linear.scales is not None
            assert (linear.values.dtype, linear.scales.dtype) == (torch.uint8, dtype)
            entries = linear.in_features * linear.out_features
            assert linear.held == entries * 3 // 8 + linear.scales.nbytes


def test_several_files_have_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_files, "SHARD_BYTES", 20_000)
    folder = exported("llama", Sparse(), tmp_path)
    index = json.loads((folder / "permllm.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) > 2
    with torch.no_grad():
        expected = permllm.load(folder).model(TOKENS).logits
        assert torch.allclose(opened(folder)(TOKENS).logits, expected, atol=1e-5)


def test_it_generates_the_same_text(sparse: Path) -> None:
    expected = permllm.load(sparse).model.generate(TOKENS, max_new_tokens=12, do_sample=False)
    model = AutoModelForCausalLM.from_pretrained(sparse)
    assert torch.equal(model.generate(TOKENS, max_new_tokens=12, do_sample=False), expected)


WITHOUT = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize("exporter", [Sparse(), Permuted()], ids=lambda one: one.name)
def test_without_permllm_no_weights_are_made_up(
    exporter: Sparse | Permuted, tmp_path: Path
) -> None:
    folder = exported("llama-gqa", exporter, tmp_path)
    done = subprocess.run([sys.executable, "-c", WITHOUT, folder], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Unknown quantization type, got permllm" in done.stderr
    assert "no file named model.safetensors" in done.stderr


@pytest.mark.parametrize("first", ["permllm", "transformers"])
def test_permllm_may_be_imported_before_or_after_transformers(first: str, sparse: Path) -> None:
    script = WITHOUT.replace("import sys", f"import sys, {first}") + "import permllm"
    lines = script.split("\n")
    if first == "transformers":
        lines.insert(3, "import permllm")
    script = "\n".join(lines)
    subprocess.run([sys.executable, "-c", script, sparse], check=True, capture_output=True)


def test_it_is_not_saved_again(sparse: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(sparse)
    with pytest.raises(ValueError, match="quantized with permllm and is not serializable"):
        model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("values", [None, "int8", "int4"])
def test_what_is_unpacked_is_an_ordinary_model(values: str | None, tmp_path: Path) -> None:
    folder = exported("llama", Sparse(values=values), tmp_path / "sparse", order=kept_order)
    model = AutoModelForCausalLM.from_pretrained(folder).dequantize()
    model.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    expected = permllm.load(folder).model
    for name, tensor in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_what_is_gathered_is_not_unpacked(sparse: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(sparse)
    with pytest.raises(UserError, match="put in order at run time"):
        model.dequantize()


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("model.layers.1.mlp.up_proj.weight.indices", 0, "'model.layers.1.mlp.up_proj' is damaged"),
        ("model.layers.0.input_layernorm.permllm_order", 1, "permllm_order' is no permutation"),
    ],
)
def test_damage_is_named(
    sparse: Path, tmp_path: Path, edit: Any, name: str, value: int, wrong: str
) -> None:
    folder = Path(shutil.copytree(sparse, tmp_path / "copy"))
    edit(folder, lambda tensors: tensors[name].fill_(value))
    with pytest.raises(UserError, match=wrong):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda data: data.update(permllm=99), "this version reads up to"),
        (lambda data: data.pop("tensors"), "the manifest is damaged"),
    ],
)
def test_manifests_are_read_with_care(
    sparse: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], wrong: str
) -> None:
    folder = Path(shutil.copytree(sparse, tmp_path / "copy"))
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(UserError, match=wrong):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_unfinished_export_is_refused(sparse: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sparse, tmp_path / "copy"))
    (folder / MANIFEST).unlink()
    with pytest.raises(OSError, match=MANIFEST):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_model_is_not_pruned_by_transformers(tmp_path: Path) -> None:
    from permllm.formats.quantiser import PermllmConfig

    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="`permllm run` does"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=PermllmConfig("model.safetensors")
        )
