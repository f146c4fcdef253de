"""``permllm new``: a first pipeline file for somebody's own model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.opening import model_source
from permllm.commands import own
from permllm.errors import UserError
from permllm.printing import echo

TEMPLATE = """\
# Prunes {model}:
#   {layers} decoder layers, {hidden:,} channels, {parameters:,.1f} million parameters, {dtype}
# As it stands, it takes {estimate}
permllm: 1
model: {section}
# The text that orders are learned from. For your own:
#   dataset: {{name: text, path: my-text.txt}}
calibration: {{dataset: python-docs, sequences: 16, length: {length}, held_out: 4}}
pattern: "2:4"   # of every 4 consecutive weights, at most 2 are kept
layers:
  metric: wanda
  permutation: lcp   # learned; cp is found faster, none keeps the order
  # Only orders that fold into the weights, so that the permuted export opens as any checkpoint.
  foldable: true
  residual: original
evaluate:
  - {{name: perplexity, dataset: python-docs, length: {length}, max_tokens: 16384}}
  - sparsity
export: [permuted]
"""


@click.command("new")
@click.argument("path", shell_complete=completing.files)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The pipeline file.  [default: MODEL.yaml in the current folder]",
)
@needs_prune
@debug_option
def command(path: str, out: Path | None) -> None:
    """Write a pipeline file that prunes the model in PATH.

    PATH is a folder as save_pretrained writes it, or a GGUF file. What the model is and what it
    costs to prune stand in the file as comments. (A plugin is begun by `permllm plugins new`.)
    """
    section = model_source(path)
    file = out or Path(f"{_name(path)}.yaml")
    another = "name another file with --out"
    if file.exists():
        raise UserError(f"'{file}' is there already", hint=another)
    if not file.absolute().parent.is_dir():
        raise UserError(f"there is no folder '{file.parent}'", hint=another)
    text, warnings = _text(section, file)
    for warning in warnings:
        echo(f"warning: {warning}", err=True)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UserError(f"'{file}' cannot be written: {error.strerror}", hint=another) from error
    echo(f"wrote {file}\nnext:")
    for word in ("check", "run"):
        echo(f"  {own(word, file)}")


def _name(path: str) -> str:
    """What a model is called: its folder or file, or the last part of its name."""
    whole = Path(path).resolve()
    return (whole.stem if whole.is_file() else whole.name.rpartition(":")[2]) or "model"


def _text(section: dict[str, str], file: Path) -> tuple[str, tuple[str, ...]]:
    """The file's text, and what may go wrong."""
    from permllm.models.loading import read_config
    from permllm.models.shape import model_shape
    from permllm.pipeline.reading import read_mapping, study_of_text
    from permllm.registry import Registry
    from permllm.runner.preflight.check import check_not_exported, check_not_quantised, check_plan
    from permllm.runs.folder import new_folder
    from permllm.runs.plan import plan_of

    registry = Registry.load()
    source = read_mapping({"model": section, "pattern": "2:4"}, registry).model
    check_not_exported(source)
    source.check()
    config = read_config(source)
    check_not_quantised(source, config)
    shape = model_shape(config)
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    facts: dict[str, Any] = {
        "model": json.dumps(section.get("path") or source.describe())[1:-1],
        "layers": shape.layers,
        "hidden": shape.hidden,
        "parameters": shape.parameters / 1e6,
        "dtype": str(dtype or "type not said").removeprefix("torch."),
        "section": _flow(section, file.absolute().parent),
        "length": min(256, shape.positions or 256),
    }
    text = TEMPLATE.format(**facts, estimate="")
    plan = plan_of(
        study_of_text(text, str(file), file.parent, registry), new_folder(file.stem), named=False
    )
    checked = check_plan(plan, elsewhere=True)
    estimate = f"{checked.estimate.summary()} on the machine that wrote this"
    return TEMPLATE.format(**facts, estimate=estimate), checked.warnings


def _flow(section: dict[str, str], folder: Path) -> str:
    """The ``model:`` section in a line of YAML, with its path as the file at a folder says it."""
    if "path" in section:
        try:
            relative = os.path.relpath(section["path"], folder)
        except ValueError:  # another drive of Windows
            relative = section["path"]
        section = section | {"path": relative}
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in section.items()) + "}"
