"""Tiny models with random weights, of every kind that permllm is tested with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from permllm.testing.tokenizers import byte_tokenizer

VOCABULARY = 257
"""Tokens of the tiny models: those of the byte tokenizer."""

POSITIONS = 128
"""The longest sequence that the tiny models take."""

HIDDEN, INTERMEDIATE, LAYERS, HEADS = 32, 48, 2, 4
"""Their sizes; M of a pattern may be 2, 4, 8 or 16."""

_USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": None,
}
_WIDE = _USUAL | {"intermediate_size": INTERMEDIATE}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": False}


def tiny_model(name: str, *, seed: int = 0) -> Any:
    """A causal language model with random float32 weights, in eval mode.

    Args:
        name: one of :data:`ARCHITECTURES`.
        seed: of the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_CONFIGS[name]())
        for parameter in model.parameters():
            # The default weights are so small that a layer would hardly change its input,
            # and biases of zero would hide whether they are kept.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=HIDDEN**-0.5)
            else:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_tiny(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny model and its tokenizer, as ``save_pretrained`` does.

    Args:
        name: one of :data:`ARCHITECTURES`.
        folder: where to; it is made.
        seed: of the weights.

    Returns:
        the folder.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tiny_model(name, seed=seed).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    return folder


def _config(cls: str, **options: Any) -> Callable[[], Any]:
    """Makes a configuration when it is called, since transformers is slow to import."""

    def make() -> Any:
        import transformers

        return getattr(transformers, cls)(**options)

    return make


_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
    "n_inner": INTERMEDIATE,
    "bos_token_id": None,
    "eos_token_id": VOCABULARY - 1,
}
_OPT = _USUAL | {"ffn_dim": INTERMEDIATE, "word_embed_proj_dim": HIDDEN, "pad_token_id": 1}
_FALCON = _USUAL | {"ffn_hidden_size": INTERMEDIATE, "alibi": False}
_QWEN2_MOE = _GROUPED | {
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 32,
}
_GPT_OSS = (
    _GROUPED
    | _EXPERTS
    | {
        "num_local_experts": 4,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
)

_BLOOM = _USUAL | {"n_head": HEADS, "n_layer": LAYERS}
_LLAMA4 = _GROUPED | {
    "head_dim": 8,
    "intermediate_size_mlp": INTERMEDIATE,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 64,
    "no_rope_layers": [1, 0],
}
_JAMBA = (
    _GROUPED
    | _EXPERTS
    | {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    }
)

_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _config("LlamaConfig", **_WIDE),
    "llama-gqa": _config("LlamaConfig", **_GROUPED),
    "mistral": _config("MistralConfig", **_GROUPED, sliding_window=8),
    "qwen2": _config("Qwen2Config", **_GROUPED),
    "qwen3": _config("Qwen3Config", **_GROUPED, head_dim=8),
    "opt": _config("OPTConfig", **_OPT),
    "gpt2": _config("GPT2Config", **_GPT2),
    "gpt-neox": _config("GPTNeoXConfig", **_WIDE),
    "phi3": _config("Phi3Config", **_GROUPED),
    "gemma": _config("GemmaConfig", **_GROUPED, head_dim=8),
    "gemma3": _config("Gemma3TextConfig", **_GROUPED, head_dim=8, sliding_window=8),
    "falcon": _config("FalconConfig", **_FALCON, parallel_attn=True, bias=True),
    "falcon-new": _config("FalconConfig", **_FALCON, new_decoder_architecture=True),
    "mixtral": _config("MixtralConfig", **_GROUPED, **_EXPERTS, num_local_experts=4),
    "qwen2-moe": _config("Qwen2MoeConfig", **_QWEN2_MOE, **_EXPERTS),
    "gpt-oss": _config("GptOssConfig", **_GPT_OSS),
    # Positions that depend on the number of sequences.
    "bloom": _config("BloomConfig", **_BLOOM),
    # All experts in one product.
    "llama4": _config("Llama4TextConfig", **_LLAMA4),
    # Layers of two classes.
    "jamba": _config("JambaConfig", **_JAMBA),
}

ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)
"""The names of the tiny models."""
