"""Permuted exports compute what the pruned model does, in every architecture."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import permllm
from permllm import RunFailed, UserError
from permllm.contexts.export import ExportContext
from permllm.core.patterns import Pattern, is_nm
from permllm.exporters.permuted import Permuted
from permllm.folding.fold import Fold
from permllm.folding.layout import Layout
from permllm.folding.residual import find_residual
from permllm.formats import export_files as files
from permllm.formats.manifest import MANIFEST, Manifest, read_manifest
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.testing import check_exporter
from permllm.testing.exporters import pruned_export
from permllm.testing.models import ARCHITECTURES, VOCABULARY, tiny_model

Order = Callable[[str, Group], Tensor | None]

TOKENS = torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


def free(model: Any) -> Order:
    """Any order, but for experts, whose input cannot be gathered."""
    decoder = Decoder.trace(model)
    generator = torch.Generator().manual_seed(0)

    def order(name: str, group: Group) -> Tensor:
        if decoder.linears[group.linears[0]].index is not None:
            return torch.arange(group.channels)
        return torch.randperm(group.channels, generator=generator)

    return order


def foldable(model: Any) -> Order:
    """Any order that folds; where none does, the original one."""
    folds = Layout(Decoder.trace(model)).folds()
    generator = torch.Generator().manual_seed(0)

    def order(name: str, group: Group) -> Tensor:
        fold = folds[name]
        if isinstance(fold, Fold):
            return fold.random_permutation(generator)
        return torch.arange(group.channels)

    return order


def shared(model: Any) -> Order:
    """One order for all that reads the residual stream; other groups have one that folds."""
    decoder = Decoder.trace(model)
    residual, within = find_residual(decoder), foldable(model)
    permutation = torch.randperm(32, generator=torch.Generator().manual_seed(5))
    return lambda name, group: permutation if name in residual.groups else within(name, group)


def exported(context: ExportContext, folder: Path, **options: Any) -> Manifest:
    Permuted(**options).export(context, folder)
    return read_manifest(folder)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS).logits.float()


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def assert_patterns_hold(folder: Path, manifest: Manifest) -> int:
    """Every pruned tensor is N:M along its input axis as stored; the entries of all of them."""
    size = 0
    for name, entry in manifest.tensors.items():
        if entry.pattern is not None:
            with safe_open(folder / entry.file, framework="pt") as file:
                tensor = file.get_tensor(name)
            along = tensor.transpose(-1, -2) if entry.axis == -2 else tensor
            assert is_nm(along, Pattern.parse(entry.pattern))
            size += tensor.numel()
    return size


def test_contract() -> None:
    check_exporter(Permuted())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_free_orders_are_gathered(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    context = pruned_export(model, free(model))
    expected = logits(model)
    manifest = exported(context, tmp_path)
    assert manifest.files == ("permllm.safetensors",)
    orders = Counter(group.order for group in manifest.groups)
    assert orders["gathered"] >= 4
    pruned = sum(linear.c_in * linear.c_out for linear in context.decoder.linears.values())
    assert assert_patterns_hold(tmp_path, manifest) == pruned
    loaded = permllm.load(tmp_path)
    assert_close(logits(loaded.model), expected)
    assert type(loaded.model) is type(model)
    assert loaded.tokenizer.decode(loaded.tokenizer("héllo")["input_ids"]) == "héllo"
    # Without permllm, transformers does not open it: it would compute nonsense.
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(
        report.runs == "cpu kernel" or report.reason for report in opened.hf_quantizer.linears
    )
    assert_close(logits(opened), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_foldable_orders_make_an_ordinary_checkpoint(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    context = pruned_export(model, foldable(model))
    expected = logits(model)
    manifest = exported(context, tmp_path)
    assert manifest.files == ("model.safetensors",)
    orders = Counter(group.order for group in manifest.groups)
    assert orders["gathered"] == 0
    assert orders["folded"] >= 4
    pruned = sum(linear.c_in * linear.c_out for linear in context.decoder.linears.values())
    assert assert_patterns_hold(tmp_path, manifest) == pruned
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_close(logits(plain), expected)
    assert_close(logits(permllm.load(tmp_path).model), expected)
    AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_order_of_the_residual_stream(name: str, tmp_path: Path) -> None:
    """Nothing is gathered, not even for experts, and nothing keeps its order."""
    model = tiny_model(name)
    context = pruned_export(model, shared(model))
    expected = logits(model)
    manifest = exported(context, tmp_path)
    assert manifest.files == ("model.safetensors",)
    for group in manifest.groups:
        # What goes through a state keeps its order.
        assert group.order == ("stored" if "mamba.x" in group.name or "mamba.out" in group.name
                               else "folded")  # fmt: skip
    assert len(manifest.groups) == len(context.decoder.groups)
    pruned = sum(linear.c_in * linear.c_out for linear in context.decoder.linears.values())
    assert assert_patterns_hold(tmp_path, manifest) == pruned
    assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), expected)
    assert len(manifest.residual) >= 12
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "the whole residual stream" in card


def test_a_shared_order_beside_gathers(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    one, other = shared(model), free(model)

    def order(name: str, group: Group) -> Tensor | None:
        return other(name, group) if "attn.c_proj" in name else one(name, group)

    manifest = exported(pruned_export(model, order), tmp_path)
    assert Counter(group.order for group in manifest.groups) == {"folded": 6, "gathered": 2}
    assert_close(logits(permllm.load(tmp_path).model), logits(model))


def test_the_pruned_model_itself_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    context = pruned_export(model, free(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exported(context, tmp_path, dtype="bfloat16")
    assert model.dtype == torch.float32
    assert model.config.dtype in (None, torch.float32)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [free, foldable])
@pytest.mark.parametrize("name", ["llama-gqa", "mixtral"])
def test_in_half_precision(name: str, kind: Callable[[Any], Order], tmp_path: Path) -> None:
    model = tiny_model(name)
    context = pruned_export(model, kind(model))
    manifest = exported(context, tmp_path, dtype="bfloat16")
    floats = {entry.dtype for key, entry in manifest.tensors.items() if "order" not in key}
    assert floats == {"BF16"}
    loaded = permllm.load(tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    wide = permllm.load(tmp_path, dtype=torch.float32).model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    assert_close(logits(wide), logits(model))


@pytest.mark.parametrize("kind", [free, foldable])
def test_a_model_that_is_in_half_precision(kind: Callable[[Any], Order], tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    # The parameters only, as transformers loads them: rotary frequencies stay in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    exported(pruned_export(model, kind(model)), tmp_path)
    loaded = permllm.load(tmp_path).model
    assert loaded.dtype == torch.bfloat16
    # Sums in another order are rounded otherwise.
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", [free, foldable, shared])
def test_tied_embeddings_stay_tied(kind: Callable[[Any], Order], tmp_path: Path) -> None:
    config = tiny_model("llama-gqa").config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    manifest = exported(pruned_export(model, kind(model)), tmp_path)
    assert ("lm_head.weight" in manifest.tensors) is False
    loaded = permllm.load(tmp_path).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_close(logits(loaded), logits(model))


def test_other_patterns_and_dense_groups(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    order = free(model)

    def some(name: str, group: Group) -> Tensor | None:
        return None if "o_proj" in name else order(name, group)

    context = pruned_export(model, some, Pattern(1, 8))
    manifest = exported(context, tmp_path)
    assert {entry.pattern for entry in manifest.tensors.values()} == {None, "1:8"}
    assert not any("o_proj" in group.name for group in manifest.groups)
    assert_close(logits(permllm.load(tmp_path).model), logits(model))


def test_one_dense_linear_in_a_group(tmp_path: Path) -> None:
    """It reads the same reordered input, so its columns move, too."""
    model = tiny_model("llama-gqa")
    context = pruned_export(model, free(model))
    dense = "model.layers.0.self_attn.k_proj"
    del context.patterns[dense]
    with torch.no_grad():
        context.decoder.weight(dense).normal_()
    manifest = exported(context, tmp_path)
    assert manifest.tensors[f"{dense}.weight"].pattern is None
    assert_close(logits(permllm.load(tmp_path).model), logits(model))


def test_large_models_get_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARD_BYTES", 20_000)
    model = tiny_model("llama-gqa")
    manifest = exported(pruned_export(model, free(model)), tmp_path)
    assert len(manifest.files) > 3
    assert all(name.startswith("permllm-0000") for name in manifest.files)
    assert_close(logits(permllm.load(tmp_path).model), logits(model))


def test_generation_goes_on_token_by_token(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    exported(pruned_export(model, free(model)), tmp_path)
    loaded = permllm.load(tmp_path).model
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS[:1])
    expected = model.generate(TOKENS[:1], attention_mask=mask, **options)
    assert torch.equal(loaded.generate(TOKENS[:1], attention_mask=mask, **options), expected)


def test_a_stream_that_cannot_be_moved_is_gathered(tmp_path: Path) -> None:
    model = tiny_model("llama")
    order = shared(model)
    model.model.norm.register_forward_hook(lambda module, args, out: out * torch.arange(32))
    manifest_reasons = {group.reason for group in pruned_export(model, order).storage.groups}
    assert any("what stands after the layers does not follow" in str(r) for r in manifest_reasons)


# --- the card -----------------------------------------------------------------------


def card_code(folder: Path) -> tuple[str, str]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return card, card.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("kind", [free, foldable])
def test_the_cards_code_runs(
    kind: Callable[[Any], Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama-gqa")
    folder = tmp_path / "path/to/this/folder"
    folder.mkdir(parents=True)
    exported(pruned_export(model, kind(model)), folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(card_code(folder)[1], names)
    assert_close(logits(names["model"].eval()), logits(model))


def test_the_card_says_what_is_folded_and_what_is_gathered(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    exported(pruned_export(model, free(model)), tmp_path)
    card, code = card_code(tmp_path)
    assert "import permllm" in code
    for part in (
        "2 of 8 inputs come in order by themselves",
        "the input of `mlp.down_proj`: rows of `mlp.gate_proj.weight`, `mlp.up_proj.weight` (2",
        "6 of 8 are put in order at run time",
        "- `input_layernorm`, for `self_attn.q_proj`, `self_attn.k_proj`, `self_attn.v_proj`:",
        "does not keep within the 2 segments of 8 channels",
    ):
        assert part in card


def test_the_card_of_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    exported(pruned_export(model, foldable(model)), tmp_path)
    card, code = card_code(tmp_path)
    assert "AutoModelForCausalLM.from_pretrained" in code
    assert "an ordinary checkpoint of transformers" in card
    assert "gathered" not in card


# --- what is refused ----------------------------------------------------------------


def test_experts_whose_order_cannot_be_gathered(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    generator = torch.Generator().manual_seed(0)
    context = pruned_export(
        model, lambda name, group: torch.randperm(group.channels, generator=generator)
    )
    with pytest.raises(UserError, match=r"gate_up_proj\[\d\] can be neither folded") as caught:
        Permuted().export(context, tmp_path)
    assert "residual: original" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    model = tiny_model("llama-gqa")
    with pytest.raises(UserError, match="holds files already"):
        Permuted().export(pruned_export(model, free(model)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    model = tiny_model("llama-gqa")
    with pytest.raises(UserError, match="the export needs about"):
        Permuted().export(pruned_export(model, free(model)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        (tmp_path / "permllm-00001.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    model = tiny_model("llama-gqa")
    with pytest.raises(OSError, match="No space left"):
        Permuted().export(pruned_export(model, free(model)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_hold_the_pattern(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    context = pruned_export(model, free(model))
    with torch.no_grad():
        context.decoder.weight("model.layers.1.mlp.down_proj").fill_(1)
    with pytest.raises(RunFailed, match=r"layers.1.mlp.down_proj.weight: it is not 2:4"):
        Permuted().export(context, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [torch.zeros(32, dtype=torch.long), torch.arange(8)])
def test_orders_that_are_no_permutations(wrong: Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    context = pruned_export(model, free(model))
    name = "model.layers.0:self_attn.o_proj"
    context.permutations[name] = wrong
    with pytest.raises(UserError, match="is no permutation"):
        Permuted().export(context, tmp_path)


def test_a_model_that_computes_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathers at the wrong order, say, are seen before the export is called done."""
    from permllm.formats import stored

    ready = stored._ready

    def shifted(tensor: Tensor, dtype: Any) -> Tensor:
        return ready(tensor.roll(1, -1) if tensor.dim() == 1 else tensor, dtype)

    monkeypatch.setattr(stored, "_ready", shifted)
    model = tiny_model("llama-gqa")
    with pytest.raises(RunFailed, match="does not compute what the pruned model does"):
        Permuted().export(pruned_export(model, free(model)), tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    assert not list(tmp_path.iterdir())
