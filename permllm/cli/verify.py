"""``permllm verify``: whether an export is what was exported, and computes what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli.errors import debug_option
from permllm.cli.opening import model_source, open_model
from permllm.errors import UserError

if TYPE_CHECKING:
    from permllm.saved.logits import Agreement


@click.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="MODEL",
    help="Compare logits with this model too, such as the masked export of the same run: a "
    "folder, a GGUF file, package:NAME or hub:ID.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@debug_option
def command(directory: Path, against: str | None, as_json: bool) -> None:
    """Check the export in DIRECTORY, tensor by tensor, and what the model says.

    Every tensor is read and compared with the manifest: shape, type, N:M in stored order,
    finite numbers, hash. Then the model is opened and its logits for fixed tokens are
    compared with those that were recorded when it was exported. What is wrong is named, and
    the exit code is then 2.
    """
    from permllm.saved.files import check_files
    from permllm.saved.manifest import read_manifest

    manifest = read_manifest(directory)
    wrong = {name: why for name, why in check_files(directory, manifest) if why}
    if wrong:
        name, why = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more tensors are not right" if len(wrong) > 1 else ""
        raise UserError(f"'{directory}' is not what was exported: {name}: {why}{more}")
    # What is packed cannot hold more than N of every M.
    held = [entry.pattern for entry in manifest.tensors.values() if entry.pattern]
    held += [entry.pattern for entry in manifest.packed.values()]
    patterns, counted = sorted(set(held)), len(held)
    said = {"recorded": _recorded(directory, manifest)}
    if against is not None:
        said[against] = _against(directory, manifest, against)
    facts: dict[str, Any] = {
        "tensors": len(manifest.tensors),
        "pruned": counted,
        "patterns": patterns,
        "logits": {
            name: {"difference": found.difference, "argmax": found.argmax}
            for name, found in said.items()
        },
    }
    if as_json:
        click.echo(json.dumps({"directory": str(directory), **facts}))
    else:
        click.echo(f"{len(manifest.tensors)} tensors are those that were exported")
        click.echo(f"{counted} of them are {' and '.join(patterns)} in stored order")
        for name, found in said.items():
            what = "those recorded at the export" if name == "recorded" else f"those of {name}"
            click.echo(
                f"logits differ from {what} by {found.difference:.2g} of the largest; "
                f"{found.argmax:.2%} of the most likely tokens are the same"
            )
    for name, found in said.items():
        if not found.holds:
            whose = "what was recorded at the export" if name == "recorded" else name
            raise UserError(f"the model in '{directory}' does not compute the same as {whose}")


def _recorded(directory: Path, manifest: Any) -> Agreement:
    import torch

    from permllm.saved.loading import load
    from permllm.saved.logits import compare_recorded, float32_logits

    model = load(directory).model
    return compare_recorded(
        manifest.logits, float32_logits(model, torch.tensor(manifest.logits.tokens))
    )


def _against(directory: Path, manifest: Any, against: str) -> Agreement:
    import torch

    from permllm.pipeline.reading import read_mapping
    from permllm.registry import Registry
    from permllm.saved.loading import load
    from permllm.saved.logits import compare_logits, float32_logits

    tokens = torch.tensor(manifest.logits.tokens)
    pipeline = read_mapping(
        {"model": model_source(against), "pattern": "2:4", "evaluate": []}, Registry.load()
    )
    other = float32_logits(open_model(pipeline.model, torch.device("cpu")).model, tokens)
    return compare_logits(other, float32_logits(load(directory).model, tokens))
