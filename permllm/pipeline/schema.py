"""What a pipeline file may hold. Every field's help is the documentation of its key.

A file is read into these classes by :mod:`permllm.pipeline.reading`; the default
components are references, as a file would write them, that the reader resolves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

import attrs

from permllm.components import (
    Allocation,
    Dataset,
    Evaluator,
    Exporter,
    Metric,
    Observer,
    PermutationLearner,
    Pruner,
)
from permllm.core.patterns import Pattern
from permllm.fields.declared import reference
from permllm.models.sources import Source
from permllm.option import option

VERSION = 1
"""The schema version that this permllm reads and writes."""

SOURCES: dict[str, type] = {cls.source: cls for cls in get_args(Source)}
"""The places that a model may come from, by the value of ``source``."""

RESIDUAL = ("free", "shared", "original")
"""What the order of groups that read the residual stream may be."""

MAX_SEED = 2**63 - 1
"""The largest seed that torch takes."""

MAX_SHARDS = 4096
"""More processes than any run has use for."""

MAX_RESOURCES = 4096
"""More GPUs or CPUs than any machine has."""

MAX_NAME = 100
"""The longest name: folders and MLflow experiments are called after it."""


def _check_name(pipeline: Pipeline, attribute: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch(r"\w[\w .+@-]*", value) or len(value) > MAX_NAME:
        raise ValueError(
            f"name must be at most {MAX_NAME} letters, digits, blanks or .+@-_ and start with "
            f"a letter or digit, not {value!r}"
        )


def _check_device(pipeline: Pipeline, attribute: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", value):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N, xpu or mps, not {value!r}")


def _check_window(layers: Layers, attribute: attrs.Attribute[Any], value: int | str) -> None:
    if value != "all" and int(value) < 1:
        raise ValueError(f"window must be at least 1 layer or 'all', not {value}")


def _check_residual(layers: Layers, attribute: attrs.Attribute[str], value: str) -> None:
    if value not in RESIDUAL:
        raise ValueError(f"residual must be one of {', '.join(RESIDUAL)}, not {value!r}")
    if value == "shared" and layers.window != "all":
        raise ValueError(
            "residual: shared finds one order for all layers at once, so it needs window: all, "
            f"not {layers.window}"
        )


@attrs.frozen(kw_only=True)
class Calibration:
    """The text that statistics are gathered on and permutations are learned from."""

    dataset: Dataset = reference("python-docs", help="where the text comes from")
    sequences: int = option(16, help="sequences to gather and learn from", minimum=1, maximum=10**6)
    length: int = option(256, help="tokens of a sequence", minimum=2, maximum=10**6)
    held_out: int = option(
        4, help="more sequences, never learned from, to choose by", minimum=0, maximum=10**6
    )
    batch_size: int = option(4, help="sequences of a forward pass", minimum=1, maximum=65536)
    seed: int = option(0, help="seed of the choice of sequences", minimum=0, maximum=MAX_SEED)


@attrs.frozen(kw_only=True)
class Override:
    """Other choices for the linears whose names match; later entries win."""

    match: str = option(help="glob over the linears' module names, such as model.layers.0.*")
    pattern: Pattern | None = option(None, help="their N:M pattern; null keeps the pipeline's")
    metric: Metric | None = option(None, help="their importance metric; null keeps the pipeline's")
    pruner: Pruner | None = option(None, help="their pruner; null keeps the pipeline's")
    skip: bool | None = option(None, help="leave them dense, or not; null keeps layers.skip")


@attrs.frozen(kw_only=True)
class Layers:
    """What is done to the decoder layers."""

    metric: Metric = reference("wanda", help="how important each weight is")
    allocation: Allocation | None = option(
        None,
        help="how much of each linear is kept, within what the pattern keeps of all; null: the "
        "pattern everywhere",
    )
    permutation: PermutationLearner = reference("lcp", help="how the channels' order is found")
    pruner: Pruner = reference("mask", help="how weights are cut to the pattern")
    window: int | Literal["all"] = attrs.field(
        default="all",
        validator=_check_window,
        metadata={"help": "layers whose orders are learned together", "minimum": 1},
    )
    foldable: bool = option(
        False,
        help="learn only orders that fold into the rows before, where there are such, so that "
        "fewer inputs are gathered at run time",
    )
    residual: str = attrs.field(
        default="free",
        validator=_check_residual,
        metadata={
            "help": "orders of what reads the residual stream: its own for every group, to be "
            "gathered at run time (free); one for all, which the stream itself is stored in "
            "(shared, with window: all); or, for every group whose order does not fold, the "
            "original one (original)",
            "choices": RESIDUAL,
        },
    )
    skip: tuple[str, ...] = option(
        ("lm_head",), help="globs over module names that stay dense, children included"
    )
    inputs: str = option(
        "pruned",
        help="what a window sees: the outputs of the pruned windows before it, or the dense ones",
        choices=("pruned", "dense"),
    )
    overrides: tuple[Override, ...] = option((), help="other choices for some linears")


@attrs.frozen(kw_only=True)
class Resources:
    """What each run of a study takes of a cluster."""

    gpus: int | None = option(
        None,
        help="GPUs of a run; null: one where the cluster has some and device is not cpu",
        minimum=0,
        maximum=MAX_RESOURCES,
    )
    cpus: int | None = option(
        None,
        help="CPUs of a run, and the threads that it computes with; null: as many as the machine "
        "that starts the study has threads",
        minimum=1,
        maximum=MAX_RESOURCES,
    )


@attrs.frozen(kw_only=True)
class Pipeline:
    """One pipeline file."""

    permllm: int = option(VERSION, help="schema version of the file", minimum=1, maximum=VERSION)
    name: str = attrs.field(
        metadata={"help": "the pipeline's name; without one, the file's"}, validator=_check_name
    )
    plugins: tuple[Path, ...] = option(
        (), help="Python files with hooks, run before components are looked up"
    )
    model: Source = option(help="the model to prune")
    calibration: Calibration = reference({}, help="the calibration text")
    pattern: Pattern = option(help="N:M: of every M consecutive weights at most N are kept")
    layers: Layers = reference({}, help="what is done to the decoder layers")
    evaluate: tuple[Evaluator, ...] = option((), help="what is measured, dense and pruned")
    export: tuple[Exporter, ...] = option((), help="how the pruned models are written")
    track: tuple[Observer, ...] = reference(
        {"mlflow": {}}, help="who records the runs: observers' names with their options"
    )
    matrix: dict[str, Any] | None = option(
        None, help="dotted keys and the values to try: one run for each combination"
    )
    device: str = attrs.field(
        default="auto",
        validator=_check_device,
        metadata={"help": "auto, cpu, cuda, cuda:N, xpu or mps"},
    )
    dtype: str = option(
        "auto",
        help="type of the model's numbers, computed and exported; auto: as saved, but computed in "
        "float32 on a CPU",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    stream: str = option(
        "auto",
        help="whether layers are copied to the device, or widened, only while they run (always), "
        "stay there as long as a window is worked on (never), or as memory allows (auto)",
        choices=("auto", "always", "never"),
    )
    deterministic: bool = option(
        False,
        help="refuse operations of a GPU whose sums come out differently from time to time, and "
        "take slower ones; on a CPU the same threads give the same bits in any case",
    )
    shards: int | None = option(
        None,
        help="into how many parts sums over the calibration text are cut, which decides their last "
        "digits; as many processes at most share that work; null: as many as there are processes",
        minimum=1,
        maximum=MAX_SHARDS,
    )
    resources: Resources = reference({}, help="what each run takes of a cluster (run --on ray)")
    seed: int = option(0, help="seed of everything random", minimum=0, maximum=MAX_SEED)
