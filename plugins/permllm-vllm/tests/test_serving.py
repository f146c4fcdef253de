"""vLLM itself, where it is installed: `tox run -e vllm`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import permllm

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    # Of vLLM and what it imports.
    pytest.mark.filterwarnings("ignore"),
]

PROMPT, TOKENS = [5, 9, 17, 3, 40], 12


def served(
    folder: Path, method: str | None = "permllm", **options: Any
) -> tuple[list[int], list[float], Any]:
    """Greedy tokens of vLLM, their log probabilities, and the model."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(folder),
        quantization=method,
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        **options,
    )
    limit = SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=0)
    answer = llm.generate([{"prompt_token_ids": PROMPT}], limit, use_tqdm=False)[0].outputs[0]
    tokens = list(answer.token_ids)
    chances = [one[token].logprob for token, one in zip(tokens, answer.logprobs or (), strict=True)]
    return tokens, chances, llm


def packed_in(llm: Any, part: str = "values") -> set[str]:
    """The linears of vLLM that hold values, or another part of a packed weight."""
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    model = runner.model_runner.model
    return {name for name, module in model.named_modules() if hasattr(module, part)}


def assert_served_rightly(folder: Path) -> Any:
    """Fail unless vLLM says what the opened export does; gives the model."""
    model = permllm.load(folder).model
    tokens, chances, llm = served(folder)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1)
    assert tokens == expected.argmax(-1).tolist()
    assert chances == pytest.approx(expected.amax(-1).tolist(), abs=1e-3)
    return llm


def test_a_dense_linear_makes_those_dense_that_it_is_made_one_with(exported: Any) -> None:
    folder = exported("LlamaConfig", "permuted", "random", dense="q_proj")
    packed = packed_in(assert_served_rightly(folder))
    assert not any("qkv_proj" in name for name in packed)
    assert len(packed) == 6


@pytest.mark.parametrize("order", ["kept", "random"])
@pytest.mark.parametrize("form", ["permuted", "sparse"])
@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen2Config"])
def test_it_says_what_the_pruned_model_says(
    name: str, form: str, order: str, exported: Any
) -> None:
    packed = packed_in(assert_served_rightly(exported(name, form, order)))
    layers = {f"model.layers.{index}." for index in range(2)}
    linears = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert packed == {layer + linear for layer in layers for linear in linears}


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_it_says_what_the_model_with_rounded_values_says(values: str, exported: Any) -> None:
    options = {"values": values, "group_size": 32, "dtype": "float32"}
    llm = assert_served_rightly(exported("LlamaConfig", "sparse", "random", **options))
    assert len(packed_in(llm, "scales")) == 8


def test_the_configuration_names_the_method(exported: Any) -> None:
    folder = exported("LlamaConfig", "sparse")
    assert served(folder, None)[0] == served(folder)[0]


def test_dense_weights_are_kept_where_the_user_grants_the_memory(exported: Any) -> None:
    folder = exported("LlamaConfig", "sparse")
    overrides = {"quantization_config": {"quant_method": "permllm", "keep_dense": True}}
    tokens, _, llm = served(folder, hf_overrides=overrides)
    assert tokens == served(folder)[0]
    assert len(packed_in(llm)) == 8


def test_a_damaged_linear_is_named(exported: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = exported("LlamaConfig", "sparse")
    tensors = load_file(folder / "permllm.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight.indices"].fill_(0)
    save_file(tensors, folder / "permllm.safetensors")
    with pytest.raises(Exception, match=r"model\.layers\.1\.mlp\.down_proj: ") as caught:
        served(folder)
    assert isinstance(caught.value, ValueError)
