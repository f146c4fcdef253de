"""``permllm eval``: measure a model, pruned or not, without a pipeline file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from permllm.cli import completing
from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.opening import model_source, open_model
from permllm.cli.registry import load_registry, no_plugin_option
from permllm.printing import console, echo, marked

if TYPE_CHECKING:
    from permllm.components import Evaluator
    from permllm.formats.loading import LoadedExport
    from permllm.registry import Registry


@click.command("eval")
@click.argument("model", shell_complete=completing.files)
@click.option(
    "--evaluate",
    "specs",
    multiple=True,
    metavar="SPEC",
    shell_complete=completing.components("evaluator"),
    help="An evaluator as in a pipeline file, such as sparsity or "
    "'{name: perplexity, length: 512}'; may be repeated.  [default: perplexity]",
)
@click.option("--text", type=click.Path(path_type=Path), help="Perplexity on this text file.")
@click.option("--choices", type=click.Path(path_type=Path), help="Accuracy on these JSON lines.")
@click.option("--length", type=click.IntRange(2), help="Tokens of a sequence, for perplexity.")
@click.option("--max-tokens", type=click.IntRange(2), help="At most so many, for perplexity.")
@click.option("--device", default="auto", show_default=True, help="Where to compute.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@no_plugin_option
@needs_prune
@debug_option
def command(
    model: str,
    specs: tuple[str, ...],
    text: Path | None,
    choices: Path | None,
    length: int | None,
    max_tokens: int | None,
    device: str,
    as_json: bool,
    no_plugin: tuple[str, ...],
) -> None:
    """Measure MODEL: a folder, a GGUF file, package:NAME or hub:ID.

    Without --evaluate, --text or --choices, this is the perplexity on Python's own
    documentation.
    """
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        from permllm.models.devices import pick_device

        registry = load_registry(no_plugin)
        limits = {"length": length, "max_tokens": max_tokens}
        evaluators = _evaluators(registry, model_source(model), specs, text, choices, limits)
        for evaluator in evaluators.evaluate:
            evaluator.check()
        place = pick_device(device)
        echo(f"loading {model}", err=True)
        loaded = open_model(evaluators.model, place)
        figures: dict[str, float] = {}
        for evaluator in evaluators.evaluate:
            figures |= measured(evaluator, loaded, str(place))
    if as_json:
        click.echo(json.dumps({"model": loaded.description, "figures": figures}))
    else:
        _print_table(loaded.description, figures)


def _evaluators(
    registry: Registry,
    source: dict[str, str],
    specs: tuple[str, ...],
    text: Path | None,
    choices: Path | None,
    limits: dict[str, int | None],
) -> Any:
    """The pipeline that holds the model and the evaluators that were asked for."""
    from permllm.pipeline.document import Origin
    from permllm.pipeline.parsing import parse_yaml
    from permllm.pipeline.reading import read_mapping

    perplexity = {"name": "perplexity"} | {k: v for k, v in limits.items() if v is not None}
    wanted = [parse_yaml(spec, Origin(setting=f"evaluate={spec}")).data for spec in specs]
    if text is not None:
        dataset = {"name": "text", "path": str(text.absolute())}
        wanted.append(perplexity | {"dataset": dataset})
    if choices is not None:
        wanted.append({"name": "choices", "path": str(choices.absolute())})
    wanted = wanted or [perplexity]
    return read_mapping({"model": source, "pattern": "2:4", "evaluate": wanted}, registry)


def measured(evaluator: Evaluator, loaded: LoadedExport, device: str) -> dict[str, float]:
    """The figures of one evaluator, with its progress on standard error."""
    from functools import partial

    from permllm.contexts.evaluation import EvaluationContext
    from permllm.given import Giver, plain_figures
    from permllm.models.unchanged import unchanged
    from permllm.sparse.models import packed

    giver = Giver("evaluator", evaluator)
    with _progress(evaluator.name) as progress:
        context = EvaluationContext(
            device=device, progress=progress, packed=partial(packed, loaded.model, loaded.patterns)
        )
        with unchanged(loaded.model, giver):
            figures = evaluator.evaluate(loaded.model, loaded.tokenizer, context)
    return plain_figures(figures, giver)


@contextlib.contextmanager
def _progress(stage: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(marked(stage), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_table(model: str, figures: dict[str, float]) -> None:
    from rich.table import Table

    table = Table("figure", "value", title=marked(model), title_justify="left")
    for name, value in figures.items():
        table.add_row(marked(name), f"{value:.4g}")
    console().print(table)
