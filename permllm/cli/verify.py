"""``permllm verify``: whether an export is what was exported, and computes what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option
from permllm.cli.opening import named_source, open_model
from permllm.errors import UserError
from permllm.printing import echo

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.formats.loading import LoadedExport
    from permllm.formats.logits import Agreement
    from permllm.formats.manifest import Manifest

TOKENS, LENGTH = 2048, 256
"""How much of a text is compared, and in how long sequences."""


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    shell_complete=completing.files,
    help="Compare logits with this model too, such as the masked export of the same run: a "
    "folder, a GGUF file, package:NAME or hub:ID.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help=f"Compare them on the first {TOKENS:,} tokens of this file, not on a few fixed ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@debug_option
def command(directory: Path, against: str | None, text: Path | None, as_json: bool) -> None:
    """Check the export in DIRECTORY, tensor by tensor, and what the model says.

    Every file is compared with the manifest, and what was not exported is refused. Every
    tensor is read: shape, type, N:M in stored order, finite numbers, hash. Then the model is
    opened and its logits for fixed tokens are compared with those that were recorded when it
    was exported. What is wrong is named, and the exit code is then 2.
    """
    from permllm.formats.export_files import (
        card_is_edited,
        check_contents,
        check_files,
        refuse,
    )
    from permllm.formats.loading import load
    from permllm.formats.manifest import read_manifest

    if text is not None and against is None:
        raise UserError(
            "--text says on what to compare two models, and there is one",
            hint="name the other with --against, such as the masked export of the same run",
        )
    manifest = read_manifest(directory)
    files = dict(check_contents(directory, manifest))
    # Of weights the tensor that is wrong says more than the file.
    refuse(directory, {name: why for name, why in files.items() if name not in manifest.files})
    if not manifest.contents:
        echo(
            "warning: the version that exported this listed no files, so tensors alone are checked",
            err=True,
        )
    if card_is_edited(directory, manifest):
        echo("note: README.md was edited after the export", err=True)
    refuse(directory, {name: why for name, why in check_files(directory, manifest) if why})
    refuse(directory, files)
    held = _held(manifest)
    patterns, counted = sorted(set(held)), len(held)
    loaded = load(directory, check=False)
    agreements = {"recorded": _recorded(loaded, manifest)}
    perplexities: tuple[float, float] | None = None
    if against is not None:
        agreements[against], perplexities = _against(loaded, manifest, against, text)
    facts: dict[str, Any] = {
        "files": len(manifest.contents),
        "tensors": len(manifest.tensors),
        "pruned": counted,
        "patterns": patterns,
        "logits": {
            name: {"difference": agreement.difference, "argmax": agreement.argmax}
            for name, agreement in agreements.items()
        },
    }
    if text is not None and perplexities is not None:
        facts["perplexity"] = dict(zip(("export", str(against)), perplexities, strict=True))
    if as_json:
        echo(json.dumps({"directory": str(directory), **facts}))
    else:
        if manifest.contents:
            echo(f"{len(manifest.contents)} files are those that were exported, and no more")
        echo(f"{len(manifest.tensors)} tensors are those that were exported")
        what = "of them are" if manifest.format != "masked" else "linears were pruned to"
        order = "stored" if manifest.format != "masked" else "their learned"
        echo(f"{counted} {what} {' and '.join(patterns)} in {order} order")
        for name, agreement in agreements.items():
            what = "those recorded at the export" if name == "recorded" else f"those of {name}"
            echo(
                f"logits differ from {what} by {agreement.difference:.2g} of the largest; "
                f"{agreement.argmax:.2%} of the most likely tokens are the same"
            )
        if text is not None and perplexities is not None:
            ours, theirs = perplexities
            echo(f"perplexity on {text} is {ours:.6g}; that of {against} is {theirs:.6g}")
    for name, agreement in agreements.items():
        if not agreement.holds:
            whose = "what was recorded at the export" if name == "recorded" else name
            raise UserError(f"the model in '{directory}' does not compute the same as {whose}")


def _held(manifest: Manifest) -> list[str]:
    """The pattern of every pruned tensor, or of every pruned linear where order hides it."""
    if manifest.format == "masked":
        return [group.pattern for group in manifest.groups if group.pattern for _ in group.linears]
    # What is packed cannot hold more than N of every M.
    packed = [entry.pattern for entry in manifest.packed.values()]
    return [entry.pattern for entry in manifest.tensors.values() if entry.pattern] + packed


def _recorded(loaded: LoadedExport, manifest: Any) -> Agreement:
    import torch

    from permllm.formats.logits import compare_recorded, float32_logits

    return compare_recorded(
        manifest.logits, float32_logits(loaded.model, torch.tensor(manifest.logits.tokens))
    )


def _against(
    loaded: LoadedExport, manifest: Any, against: str, text: Path | None
) -> tuple[Agreement, tuple[float, float]]:
    """How the logits of two models agree, and both perplexities (of no use on fixed tokens)."""
    import torch

    from permllm.formats.logits import compare_logits, float32_logits, together

    other = open_model(named_source(against), torch.device("cpu")).model
    tokens = torch.tensor(manifest.logits.tokens) if text is None else _tokens(text, loaded)
    agreements: list[Agreement] = []
    losses = torch.zeros(2, dtype=torch.float64)
    # Sequence by sequence: the logits of a whole text are gigabytes.
    for row in tokens.split(1):
        ours, theirs = float32_logits(loaded.model, row), float32_logits(other, row)
        agreements.append(compare_logits(theirs, ours))
        losses += torch.stack([_loss(logits, row) for logits in (ours, theirs)])
    ours, theirs = (losses / tokens[:, 1:].numel()).exp().tolist()
    return together(agreements), (ours, theirs)


def _tokens(text: Path, loaded: LoadedExport) -> Tensor:
    """``LongTensor[n, L]``: the beginning of a text."""
    from permllm.datasets.sequences import first_tokens
    from permllm.datasets.text import Text

    tokens = first_tokens(Text(text).texts("test"), loaded.tokenizer, TOKENS)
    length = min(LENGTH, len(tokens))
    if length < 2:
        raise UserError(f"'{text}' has {len(tokens)} tokens, and two are the least to compare on")
    return tokens[: len(tokens) // length * length].view(-1, length)


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The summed negative log-likelihood of all tokens but the first, in float64."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum").double()
