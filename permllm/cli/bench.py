"""``permllm bench``: what an export costs to run, beside the dense model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from permllm.cli import completing
from permllm.cli.errors import debug_option
from permllm.cli.opening import named_source
from permllm.errors import UserError
from permllm.printing import console, echo

if TYPE_CHECKING:
    from permllm.formats.serving import Cost, Load
    from permllm.models.sources import Source

HEADINGS = ("model", "opens", "weights", "memory", "prefill tokens/s", "decode tokens/s")


@click.command("bench")
@click.argument("export", type=click.Path(path_type=Path), shell_complete=completing.files)
@click.option(
    "--dense",
    shell_complete=completing.files,
    metavar="MODEL",
    help="The dense model, as for `permllm eval`.  [default: the one that it was made from]",
)
@click.option("--prefill", type=click.IntRange(1), default=256, show_default=True, help="Tokens.")
@click.option("--decode", type=click.IntRange(1), default=32, show_default=True, help="Tokens.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of both.")
@click.option("--device", default="auto", show_default=True, help="Where to compute.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@debug_option
def command(
    export: Path,
    dense: str | None,
    prefill: int,
    decode: int,
    rounds: int,
    device: str,
    as_json: bool,
) -> None:
    """Measure what the EXPORT of a model costs to run, beside the dense model.

    Each is opened in a process of its own, in the type that the export is saved in: the dense
    model, the export, and the export with packed weights. They read a prompt at once (prefill),
    and write tokens one after another (decode), in turns; speeds are medians of all rounds.
    """
    from permllm.formats.manifest import read_manifest
    from permllm.formats.serving import Load, Subject, measure
    from permllm.models.devices import pick_device
    from permllm.models.loading import read_config
    from permllm.models.shape import model_shape
    from permllm.models.sources import DirectorySource

    form = read_manifest(export).format
    folder = DirectorySource(export.absolute())
    config = read_config(folder)
    shape = model_shape(config)
    if shape.positions is not None and prefill + decode > shape.positions:
        raise UserError(
            f"--prefill {prefill} and --decode {decode} are more tokens than the model's "
            f"{shape.positions} positions",
            hint="give fewer to one of them",
        )
    work = Load(
        prefill=prefill,
        decode=decode,
        rounds=rounds,
        vocabulary=shape.vocabulary,
        dtype=config.get_text_config().dtype or config.dtype,
        device=str(pick_device(device)),
    )
    subjects = [Subject(form, folder)]
    if form != "masked":
        subjects.append(Subject(f"{form}, packed", folder, sparse=True))
    source = named_source(dense) if dense else found(export)
    if source is None:
        echo("the dense model is not to be found; --dense names it", err=True)
    else:
        echo(f"dense: {source.describe()}", err=True)
        subjects.insert(0, Subject("dense", source))
    costs = measure(subjects, work)
    if as_json:
        click.echo(json.dumps(_plain(export, work, costs)))
    else:
        _print(work, costs)


def found(export: Path) -> Source | None:
    """The dense model that an export was made from, by the run that it lies in or by itself.

    What an export says of folders are names alone, since it is for others, too. No code of the
    model runs, whatever the files say.
    """
    from permllm.extras import missing_for_pruning

    # A server has nothing that reads pipeline files, nor the dense model.
    if missing_for_pruning():
        return None
    from permllm.pipeline.reading import load_plain_yaml

    folder = export.absolute()
    for holder in (*folder.parents[3:4], folder):
        try:
            section = dict(load_plain_yaml(holder / "pipeline.yaml")["model"])
            section.pop("trust_remote_code", None)
            # A name alone would be looked up in the current folder.
            if Path(section.get("path", "/")).is_absolute():
                source = _source(section)
                source.check()
                return source
        except (UserError, TypeError, ValueError, KeyError):
            continue
    return None


def _source(section: dict[str, str]) -> Source:
    from permllm.pipeline.reading import read_mapping
    from permllm.registry import Registry

    whole = {"model": section, "pattern": "2:4", "track": {}}
    return read_mapping(whole, Registry.load()).model


def _plain(export: Path, work: Load, costs: list[Cost]) -> dict[str, object]:
    return {
        "export": str(export),
        "device": work.device,
        "dtype": str(work.dtype).removeprefix("torch."),
        "prefill": work.prefill,
        "decode": work.decode,
        "rounds": work.rounds,
        "models": [attrs.asdict(cost, filter=_is_figure) for cost in costs],
    }


def _is_figure(attribute: attrs.Attribute[Any], value: Any) -> bool:
    return attribute.name != "logits"


def _print(work: Load, costs: list[Cost]) -> None:
    import torch
    from rich.table import Table

    from permllm.units import memory

    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for cost in costs:
        table.add_row(
            cost.label,
            f"{cost.load_seconds:.2f} s",
            memory(cost.weight_bytes),
            memory(cost.process_bytes),
            f"{cost.prefill_speed:,.0f}",
            f"{cost.decode_speed:,.1f}",
        )
    console().print(table)
    dtype = str(work.dtype).removeprefix("torch.")
    echo(
        f"{work.prefill} + {work.decode} tokens, {dtype}, {work.device}, "
        f"{torch.get_num_threads()} threads, medians of {work.rounds} rounds"
    )
    if costs[-1].label.endswith("packed"):
        echo(f"packed: {costs[-1].packed} linears")
