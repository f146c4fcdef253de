"""Models whose linears were exchanged compute the same, and each linear says how it runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse import cpu, models
from permllm.sparse.linear import SparseLinear
from permllm.sparse.models import sparsify

PATTERN = Pattern(2, 4)


@pytest.fixture
def compiled() -> None:
    """Skips where the kernel cannot be had."""
    if (reason := cpu.kernel_reason(torch.float32, PATTERN)) is not None:
        pytest.skip(reason)


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def pruned(model: nn.Module, pattern: Pattern = PATTERN) -> dict[str, Pattern]:
    """Prunes the linears of the layers; their patterns."""
    found = {
        name: pattern
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers" in name
    }
    for name in found:
        weight = model.get_parameter(f"{name}.weight")
        weight.mul_(nm_mask(weight.abs(), pattern))
    return found


@pytest.mark.usefixtures("compiled")
def test_a_model_computes_the_same() -> None:
    model = llama()
    patterns = pruned(model)
    tokens = torch.randint(50, (2, 40))
    before = [model.get_parameter(f"{name}.weight").nbytes for name in patterns]
    with torch.no_grad():
        many, one = model(tokens).logits, model(tokens[:1, :1]).logits
        reports = sparsify(model, patterns)
        torch.testing.assert_close(model(tokens).logits, many, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(tokens[:1, :1]).logits, one, rtol=1e-4, atol=1e-5)
    assert [report.name for report in reports] == list(patterns)
    assert {(report.runs, report.reason) for report in reports} == {("cpu kernel", None)}
    assert all(isinstance(model.get_submodule(name), SparseLinear) for name in patterns)
    # Half the values of four bytes, and two bits for each.
    assert [report.bytes for report in reports] == [0.53125 * size for size in before]
    text = model.generate(tokens[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert text.shape == (1, 7)


@pytest.mark.usefixtures("compiled")
def test_hooks_and_their_buffers_are_kept() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x)
            return result

    model = Model().eval()
    model.linear.weight.mul_(nm_mask(model.linear.weight.abs(), PATTERN))
    model.linear.register_buffer("order", torch.randperm(8))
    model.linear.register_forward_pre_hook(
        lambda module, inputs: (inputs[0].index_select(-1, module.order),)
    )
    model.linear.register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.randn(4, 8)
    expected = model(x)
    assert sparsify(model, {"linear": PATTERN})[0].runs == "cpu kernel"
    torch.testing.assert_close(model(x), expected)
    assert "linear.order" in model.state_dict()
    assert not model.linear.training


def test_what_stays_dense_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "kernel_reason", lambda dtype, pattern: None)
    model = llama(tied=True)
    weight = model.model.layers[0].mlp.up_proj.weight
    reports = sparsify(model, {"lm_head": PATTERN, "model.layers.0.mlp.up_proj": PATTERN})
    assert [report.runs for report in reports] == ["dense", "dense"]
    assert reports[0].reason == "its weight is also model.embed_tokens.weight"
    assert "the weight is not 2:4: 512 of 512 groups" in str(reports[1].reason)
    assert model.model.layers[0].mlp.up_proj.weight is weight
    assert reports[1].bytes == weight.nbytes


def test_conv1d_and_experts_stay_dense() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    name = "transformer.h.0.attn.c_attn"
    assert isinstance(gpt2.get_submodule(name), Conv1D)
    assert sparsify(gpt2, {name: PATTERN})[0].reason == "it is a Conv1D and not an nn.Linear"
    experts = nn.Module()
    experts.down = nn.Parameter(torch.zeros(3, 4, 8))
    report = sparsify(experts, {"down[2]": PATTERN})[0]
    assert "slice of a 3-D parameter" in str(report.reason)
    assert report.bytes == 4 * 8 * 4


def test_without_the_kernel_a_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "kernel_reason", lambda dtype, pattern: "there is no compiler")
    model = llama()
    patterns = pruned(model)
    assert {r.reason for r in sparsify(model, patterns)} == {"there is no compiler"}
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


@pytest.mark.parametrize("name", ["model.layers.9.mlp", "experts[0]", "model.norm", "lm_head[77]"])
def test_what_is_no_linear_is_an_error(name: str) -> None:
    if name == "model.norm":
        assert "and not an nn.Linear" in str(sparsify(llama(), {name: PATTERN})[0].reason)
        return
    with pytest.raises(ValueError, match="the model has no linear"):
        sparsify(llama(), {name: PATTERN})
