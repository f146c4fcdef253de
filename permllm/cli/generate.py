"""``permllm generate``: a look at what a model writes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option
from permllm.cli.opening import named_source, open_model
from permllm.printing import echo

if TYPE_CHECKING:
    from permllm.contexts.evaluation import LinearReport


@click.command("generate")
@click.argument("model", shell_complete=completing.files)
@click.argument("prompt")
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="At most.")
@click.option("--device", default="auto", show_default=True, help="Where to compute.")
@click.option("--sparse", is_flag=True, help="Multiply with packed weights where that is faster.")
@debug_option
def command(model: str, prompt: str, tokens: int, device: str, sparse: bool) -> None:
    """Print what MODEL writes after PROMPT, always taking the most likely token.

    MODEL is a folder (any export, or a model of transformers), a GGUF file, package:NAME or
    hub:ID. With --sparse it is a permuted or sparse export, and standard error says of its
    linears which run packed, and why others do not.
    """
    import torch

    from permllm.models.devices import pick_device
    from permllm.models.loading import quiet

    place = pick_device(device)
    loaded = open_model(named_source(model), place, sparse=sparse)
    if sparse:
        for line in lines_of(loaded.linears):
            echo(line, err=True)
    tokens_in = loaded.tokenizer(prompt, return_tensors="pt").to(place)
    with quiet(), torch.no_grad():
        written = loaded.model.generate(
            input_ids=tokens_in["input_ids"],
            attention_mask=tokens_in["attention_mask"],
            max_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
        )
    echo(loaded.tokenizer.decode(written[0], skip_special_tokens=True))


def lines_of(linears: Iterable[LinearReport]) -> list[str]:
    """Which pruned linears run packed, and why others stay dense; layers are said as ``*``."""
    kinds: dict[str, list[str]] = {}
    for one in linears:
        kind = f"stay dense, since {one.reason}" if one.reason else f"run packed ({one.runs})"
        kinds.setdefault(kind, []).append(one.name)
    total = sum(map(len, kinds.values()))
    return [
        f"{len(names)} of {total} pruned linears {kind}: "
        + ", ".join(dict.fromkeys(re.sub(r"(?<=[.\[])\d+(?=[.\]])", "*", name) for name in names))
        for kind, names in kinds.items()
    ]
