"""Which of transformers' architectures go through: learned, exported, opened again.

Makes a tiny model with random weights of every type that AutoModelForCausalLM knows, prunes it
2:4 with `cp`, exports it as `permuted`, and opens that again. Says for each type how much of
its decoder stays dense, how many permutations are folded and gathered, and how far the logits
of the opened model are from those of the pruned one; or why it is refused.

    python benchmarks/every_architecture.py
    python benchmarks/every_architecture.py qwen3_moe bloom

A type whose tiny configuration transformers itself cannot build or run says so.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import permllm
from permllm.errors import RunFailed, UserError
from permllm.formats.logits import compare_logits
from permllm.formats.manifest import read_manifest
from permllm.models.loading import quiet
from permllm.testing.tokenizers import byte_tokenizer

SIZES: dict[int, tuple[str, ...]] = {
    257: ("vocab_size",),
    64: ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim",
         "num_vocab", "lru_width", "attention_hidden_size", "embed_dim"),
    96: ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden",
         "intermediate_size_mlp", "encoder_ffn_dim", "decoder_ffn_dim", "shared_intermediate_size"),
    32: ("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank",
         "moe_shared_expert_intermediate_size"),
    2: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
        "decoder_layers", "num_key_value_heads", "num_experts_per_tok", "moe_topk", "moe_k",
        "num_experts_per_token", "n_head_kv"),
    4: ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts",
        "moe_num_experts"),
    16: ("head_dim", "qk_nope_head_dim", "v_head_dim", "attention_head_dim", "d_kv"),
    8: ("qk_rope_head_dim", "mamba_d_state", "rotary_dim", "state_size"),
    128: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    1: ("first_k_dense_replace", "n_group", "topk_group", "n_shared_experts"),
}  # fmt: skip
"""Tiny values of fields of configurations, by the value."""

BY_TYPE: dict[str, dict[str, Any]] = {
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
              "mamba_dt_rank": 8},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2,
               "num_key_value_heads": 4, "n_mamba_heads": 8, "mamba_headdim": 16,
               "mamba_d_state": 16, "mamba_ngroups": 1, "chunk_size": 16,
               "use_mamba_kernels": False, "num_mem_blocks": 1},
    "llama4_text": {"num_local_experts": 4, "interleave_moe_layer_step": 1,
                    "attention_chunk_size": 64, "no_rope_layers": [1, 0]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
}  # fmt: skip
"""Fields that want other values in some types."""

TINY = {name: value for value, names in SIZES.items() for name in names}

MEMORY, SECONDS = 3 * 2**30, 120
"""What one type may take."""


def tiny_config(kind: str) -> Any:
    """A configuration of a type with small sizes wherever it has a field for one."""
    from transformers import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[kind], **BY_TYPE.get(kind, {}))


def _shrunk(cls: Any, **given: Any) -> Any:
    default = cls(**given)
    values = {name: value for name, value in TINY.items() if hasattr(default, name)}
    layer_types = getattr(default, "layer_types", None)
    fixed = isinstance(getattr(cls, "layer_types", None), property) or "layer_types" in given
    if layer_types and not fixed:
        # One layer of each kind that there is.
        kinds = list(dict.fromkeys(layer_types))
        values["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        values["num_hidden_layers"] = len(values["layer_types"])
    values |= {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
    if hasattr(default, "is_decoder"):
        values["is_decoder"] = True
    text = getattr(default, "text_config", None)
    if text is not None and not isinstance(text, dict):
        values["text_config"] = _shrunk(type(text)).to_dict()
    return cls(**values | given)


def attempt(kind: str, folder: Path) -> list[str]:
    """The cells of a type's row."""
    from transformers import AutoModelForCausalLM

    warnings.simplefilter("ignore")
    model = folder / "model"
    try:
        with quiet():
            torch.manual_seed(0)
            made = AutoModelForCausalLM.from_config(tiny_config(kind))
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.1)
            made.eval()(input_ids=torch.arange(16)[None], use_cache=False)
            made.save_pretrained(model)
            byte_tokenizer().save_pretrained(model)
    except Exception as error:
        return ["not built", *[""] * 4, _first(error)]
    (folder / "text.txt").write_text("What is pruned is put in order before.\n" * 40)
    pipeline = {
        "permllm": 1,
        "name": "tiny",
        "model": {"source": "directory", "path": str(model)},
        "calibration": {
            "dataset": {"name": "text", "path": str(folder / "text.txt")},
            "sequences": 4, "length": 16, "held_out": 0,
        },
        "pattern": "2:4",
        "layers": {"metric": "wanda", "permutation": "cp", "inputs": "dense"},
        "export": ["permuted"],
        "track": {},
    }  # fmt: skip
    file = folder / "tiny.yaml"
    file.write_text(json.dumps(pipeline), encoding="utf-8")
    try:
        run = permllm.run(file, out=folder / "out").runs[-1]
    except UserError as error:
        return ["refused", *[""] * 4, f"{error.message} ({error.hint})"]
    except RunFailed as error:
        return ["FAILED", *[""] * 4, str(error)]
    if run.error:
        return ["FAILED", *[""] * 4, run.error]
    export = folder / "out" / run.exports["permuted"]
    counts = Counter(group.order for group in read_manifest(export).groups)
    opened = permllm.load(export).model
    with torch.no_grad():
        for name, weight in pruned_weights(folder / "out").items():
            made.get_parameter(name).copy_(weight)
        tokens = torch.arange(48).reshape(2, 24)
        logits = [one(input_ids=tokens).logits for one in (made, opened)]
    agreement = compare_logits(*logits)
    left = run.figures.get("left_dense", 0.0)
    return [
        "through" if agreement.holds else "WRONG",
        f"{left:.1%}",
        str(counts["folded"]),
        str(counts["gathered"]),
        f"{agreement.difference:.0e}",
        "",
    ]


def pruned_weights(out: Path) -> dict[str, torch.Tensor]:
    """The parameters of the pruned model in original order, from the windows of a run."""
    from permllm.models.decoder import Decoder
    from permllm.models.loading import load
    from permllm.models.sources import DirectorySource
    from permllm.runs.windows import load_window

    decoder = Decoder.trace(load(DirectorySource(out.parent / "model")).model)
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(out.glob("runs/*/windows/*.safetensors")):
        weights |= load_window(path).weights
    found = {}
    for linear in decoder.linears.values():
        if linear.name in weights:
            decoder.weight(linear.name).copy_(weights[linear.name])
            name = f"{decoder.layer_names[linear.layer]}.{linear.parameter}"
            found[name] = decoder.model.get_parameter(name).detach()
    return found


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]


def _child(kind: str, queue: Any) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (max(MEMORY, 16 * 2**30), limit))
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    with tempfile.TemporaryDirectory() as folder:
        try:
            queue.put(attempt(kind, Path(folder)))
        except BaseException as error:  # of whatever kind: it is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{type(error).__name__}: {_first(error)} ({where.filename}:{where.lineno})"
            queue.put(["BROKEN", *[""] * 4, at])


@click.command()
@click.argument("kinds", nargs=-1)
def main(kinds: tuple[str, ...]) -> None:
    """Prune, export and open a tiny model of every type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.set_verbosity_error()
    context = multiprocessing.get_context("fork")
    table = Table("type", "", "left dense", "folded", "gathered", "logits", "why")
    tally: Counter[str] = Counter()
    for kind in kinds or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        queue = context.Queue()
        child = context.Process(target=_child, args=(kind, queue))
        child.start()
        try:
            cells = queue.get(timeout=SECONDS)
        except Exception:
            cells = ["BROKEN", *[""] * 4, f"no answer in {SECONDS} s, or killed"]
        child.kill()
        child.join()
        tally[cells[0]] += 1
        table.add_row(kind, *cells)
        print(kind, *filter(None, cells), flush=True)
    Console(width=200).print(table)
    print(", ".join(f"{count} {what}" for what, count in tally.most_common()))


if __name__ == "__main__":
    main()
