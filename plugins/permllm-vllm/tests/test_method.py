"""What the plugin makes of a linear, on a stand-in for vLLM."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import standin
import torch
from permllm_vllm.export import Export
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import permllm

LAYER = "model.layers.0"
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LINEARS = {
    "self_attn.qkv_proj": FUSED["qkv_proj"],
    "self_attn.o_proj": ["o_proj"],
    "mlp.gate_up_proj": FUSED["gate_up_proj"],
    "mlp.down_proj": ["down_proj"],
}


@pytest.fixture(scope="module")
def method() -> Any:
    return standin.plugin()


def opened(method: Any, folder: Path, **config: Any) -> Any:
    """The configuration, as vLLM has it when it makes a model's linears."""
    made = method.PermllmConfig.from_config(config)
    made.packed_modules_mapping = FUSED
    made.maybe_update_config(str(folder))
    return made


def built(config: Any, folder: Path, linear: str) -> tuple[Any, nn.Module]:
    """How a linear multiplies, and it, its weights read from the folder's files."""
    layer, name = standin.LinearBase(), f"{LAYER}.{linear}"
    how = config.get_quant_method(layer, name)
    mapper = config.get_checkpoint_weight_mapper()
    head = name.rpartition(".")[0]
    stored: dict[str, list[Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    for part in LINEARS[linear]:
        for key, tensor in tensors.items():
            if key.startswith(f"{head}.{part}.") and (mapped := mapper.map_name(key)):
                stored.setdefault(mapped.rpartition(".")[2], []).append(tensor)
    whole = {end: torch.cat(parts) for end, parts in stored.items()}
    model = permllm.load(folder).model
    weights = [model.get_parameter(f"{head}.{part}.weight") for part in LINEARS[linear]]
    rows, channels = [len(one) for one in weights], weights[0].shape[1]
    sizes = channels, rows, channels, sum(rows)
    how.create_weights(layer, *sizes, params_dtype=torch.float32, weight_loader=None)
    assert {one for one, _ in layer.named_parameters()} == whole.keys()
    for end, parameter in layer.named_parameters():
        parameter.data.copy_(whole[end])
    how.process_weights_after_loading(layer)
    return how, layer


def assert_product(config: Any, folder: Path, linear: str, tokens: int = 3) -> Any:
    """Fail unless a linear multiplies as those of the opened export do; gives it."""
    how, layer = built(config, folder, linear)
    head = f"{LAYER}.{linear}".rpartition(".")[0]
    names, model = [f"{head}.{part}" for part in LINEARS[linear]], permllm.load(folder).model
    weight = torch.cat([model.get_parameter(f"{name}.weight") for name in names])
    x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(0))
    order = Export.read(str(folder)).of(names).permutation
    expected = functional.linear(x if order is None else x[:, order], weight)
    torch.testing.assert_close(how.apply(layer, x), expected, atol=1e-5, rtol=1e-4)
    return layer


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("order", ["kept", "random"])
@pytest.mark.parametrize("form", ["permuted", "sparse"])
def test_linears_multiply_as_those_of_the_opened_export(
    form: str, order: str, linear: str, method: Any, exported: Any
) -> None:
    folder = exported("llama-gqa", form, order)
    layer = assert_product(opened(method, folder), folder, linear)
    assert {name for name, _ in layer.named_parameters()} == {"values", "indices"}


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("values", ["int8", "int4"])
def test_codes_multiply_as_those_of_the_opened_export(
    values: str, group_size: int | None, linear: str, method: Any, exported: Any
) -> None:
    folder = exported("llama-gqa", "sparse", values=values, group_size=group_size, dtype="float32")
    config = opened(method, folder)
    layer = assert_product(config, folder, linear)
    assert {name for name, _ in layer.named_parameters()} == {"values", "indices", "scales"}
    assert layer.values.dtype == (torch.int8 if values == "int8" else torch.uint8)


def test_dense_weights_are_kept_as_well(method: Any, exported: Any) -> None:
    folder = exported("llama-gqa", "sparse")
    config = opened(method, folder, keep_dense=True)
    for tokens in (1, 64):
        layer = assert_product(config, folder, "mlp.down_proj", tokens)
        assert layer.permllm_dense is not None


def test_a_dense_linear_reads_its_input_in_order(method: Any, exported: Any) -> None:
    folder = exported("llama", "permuted", dense="q_proj")
    config = opened(method, folder)
    layer = assert_product(config, folder, "self_attn.qkv_proj")
    assert not hasattr(layer, "values")


def test_codes_may_have_dense_weights_beside_them_or_in_their_place(exported: Any) -> None:
    method = standin.plugin()
    folder = exported("llama-gqa", "sparse", values="int8", dtype="float32")
    kept = opened(method, folder, keep_dense=True)
    for tokens in (1, 64):
        assert hasattr(assert_product(kept, folder, "mlp.down_proj", tokens), "scales")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "kernel_reason", lambda dtype, pattern: "there is none")
        layer = assert_product(opened(method, folder), folder, "mlp.down_proj")
    assert {name for name, _ in layer.named_parameters()} == {"weight"}


def test_damaged_scales_are_named(method: Any, exported: Any) -> None:
    config = opened(method, exported("llama", "sparse", values="int8"))
    layer, name = standin.LinearBase(), f"{LAYER}.mlp.down_proj"
    how = config.get_quant_method(layer, name)
    how.create_weights(layer, 16, [8], 16, 8, params_dtype=torch.float32, weight_loader=None)
    layer.scales.data.fill_(0)
    with pytest.raises(ValueError, match=rf"{name}: the scale 0 in row 0, place 0 is no size"):
        how.process_weights_after_loading(layer)


@pytest.mark.parametrize("form", ["permuted", "sparse"])
def test_without_a_kernel_linears_are_dense_and_the_reason_is_said_once(
    form: str, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, folder = standin.plugin(), exported("llama", form)
    monkeypatch.setattr(method, "kernel_reason", lambda dtype, pattern: "there is none")
    config = opened(method, folder)
    for linear in LINEARS:
        assert not hasattr(assert_product(config, folder, linear), "values")
    assert method.logger.said == ["permllm: pruned linears run dense: there is none"]


def test_names_of_the_model_are_taken_over(method: Any, exported: Any) -> None:
    config = opened(method, exported("llama", "sparse"))
    config.apply_vllm_mapper(standin.WeightsMapper(orig_to_new_prefix={"model.": "inner.model."}))
    layer = standin.LinearBase()
    packed, other = (
        config.get_quant_method(layer, f"{head}.layers.0.mlp.down_proj")
        for head in ("inner.model", "model")
    )
    assert isinstance(packed, method.PackedLinearMethod)
    assert type(other) is standin.UnquantizedLinearMethod
    assert config.get_quant_method(nn.Linear(2, 2), f"{LAYER}.mlp.down_proj") is None
    assert method.PermllmConfig().get_quant_method(layer, "anything") is None


def test_what_is_wrong_is_said_with_the_name(method: Any, exported: Any) -> None:
    config = opened(method, exported("llama", "sparse"))
    layer, name = standin.LinearBase(), f"{LAYER}.mlp.down_proj"
    how = config.get_quant_method(layer, name)
    kind = {"params_dtype": torch.float32, "weight_loader": None}
    with pytest.raises(ValueError, match=rf"{name}: .* cut a group of 4"):
        how.create_weights(layer, 6, [8], 12, 8, **kind)
    how.create_weights(layer, 16, [8], 16, 8, **kind)
    layer.indices.data.fill_(0)
    with pytest.raises(ValueError, match=f"{name}: "):
        how.process_weights_after_loading(layer)


def test_the_method_is_registered_and_other_versions_of_vllm_are_said() -> None:
    method = standin.plugin("0.99.1")
    assert standin.METHODS[method.PermllmConfig.get_name()] is method.PermllmConfig
    (said,) = method.logger.said
    assert said == f"permllm-vllm was tried with vLLM {method.TRIED}, and this is 0.99.1"
    assert standin.plugin(f"{method.TRIED}.7").logger.said == []


def test_what_vllm_calls_takes_what_vllm_gives(method: Any) -> None:
    for own in (method.PermllmConfig, method.DenseLinearMethod, method.PackedLinearMethod):
        for name, function in vars(own).items():
            above = getattr(super(own, own), name, None)
            if not inspect.isroutine(getattr(own, name)) or name.startswith("_") or above is None:
                continue
            known = list(inspect.signature(above).parameters.values())
            taken = list(inspect.signature(getattr(own, name)).parameters.values())
            if isinstance(function, classmethod) and known and known[0].name == "self":
                known = known[1:]
            assert [one.kind for one in taken] == [one.kind for one in known], name
            named = [one.name for one in known if one.kind is not one.VAR_KEYWORD]
            assert [one.name for one in taken if one.kind is not one.VAR_KEYWORD] == named, name
