"""Finds what is wrong with a plan before any weight is loaded, and what it will cost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.commands import own
from permllm.components import components_in
from permllm.errors import UserError
from permllm.formats.manifest import MANIFEST, read_manifest
from permllm.models.devices import pick_device, pick_dtype
from permllm.models.loading import read_config
from permllm.models.shape import ModelShape, check_shapes, model_shape
from permllm.models.sources import DirectorySource, HubSource, Source
from permllm.pipeline.reading import blaming
from permllm.pipeline.schema import Pipeline
from permllm.runner.preflight.estimate import Estimate, estimate
from permllm.runner.preflight.footprint import Numbers
from permllm.runner.preflight.machine import Machine, this_machine
from permllm.runner.preflight.workload import window_layers, workload_of
from permllm.runner.selection import check_channels, check_glob, globs, settings_of
from permllm.runs.plan import Plan
from permllm.units import memory

SMALLER = "a smaller layers.window, dtype: bfloat16, and fewer and shorter sequences need less"


@attrs.frozen
class Checked:
    """A plan without mistakes that can be seen yet.

    Attributes:
        estimate: what it will cost.
        warnings: what may go wrong.
        left_dense: the share of the decoder's weights that every run leaves dense by
            ``layers.skip`` and overrides, 0 to 1.
        machine: the name of the one that the estimate is for; empty for this one.
    """

    estimate: Estimate
    warnings: tuple[str, ...]
    left_dense: float = 0.0
    machine: str = ""

    def lines(self) -> list[str]:
        """The estimate and the warnings for people."""
        cost = self.estimate
        runs = f"{cost.runs} pruned run{'s' * (cost.runs != 1)}"
        size = f"model: {cost.parameters / 1e6:,.1f} million parameters"
        where = f"estimate on {self.machine}" if self.machine else "estimate"
        together = [f"memory: {cost.together()}"] if cost.neighbours > 1 else []
        how = "; layers are copied each time that they run" * cost.streamed
        dense = f"; {self.left_dense:.1%} of the decoder's weights are skipped"
        return [
            size + dense * (self.left_dense > 0),
            f"{where}: {cost.summary()} for {runs} and the dense model{how}",
            *together,
            *(f"warning: {warning}" for warning in self.warnings),
        ]


def check_plan(
    plan: Plan,
    path: Path | None = None,
    *,
    elsewhere: bool = False,
    on: Machine | None = None,
    processes: int = 1,
    neighbours: int = 1,
) -> Checked:
    """Look at everything that can be known without loading weights.

    Args:
        plan: what is to be done.
        path: the pipeline file, for the places of mistakes.
        elsewhere: it is to be done on another machine: too little memory or disk on this
            one is no mistake.
        on: the machine that the estimate is for; this one if it is None.
        processes, neighbours: of this one, how many share the work, and its memory.

    Raises:
        UserError: the model or a file is not there, the pattern does not fit, the
            output folder cannot be written, or memory or disk cannot suffice.
    """
    pipeline = plan.pipeline
    device = pick_device(pipeline.device) if on is None else device_of(on)
    check_folder(plan.out)
    with blaming(path, "model"):
        check_not_exported(pipeline.model)
        pipeline.model.check()
    for run in (plan.dense, *plan.runs):
        check_components(run.pipeline, path)
        check_held_out(run.pipeline, path)
    with blaming(path, "model"):
        config = read_config(pipeline.model)
        check_not_quantised(pipeline.model, config)
        trust = getattr(pipeline.model, "trust_remote_code", False)
        shape = model_shape(config, trust_remote_code=trust)
        if isinstance(pipeline.model, DirectorySource):
            check_shapes(pipeline.model.path, shape)
    for run in plan.runs:
        check_names(run.pipeline, shape, path)
        check_patterns(run.pipeline, shape)
        check_exports(run.pipeline, shape, path)
        check_lengths(run.pipeline, shape)
    # Without a dtype, the weights stay as they are saved.
    saved = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    computed = pick_dtype(pipeline.dtype, device) or saved
    exported = saved if pipeline.dtype == "auto" else computed
    itemsize, saved_itemsize = (4 if one is None else one.itemsize for one in (computed, exported))
    in_files = isinstance(pipeline.model, DirectorySource | HubSource)
    mapped = saved.itemsize if in_files and saved and saved.itemsize <= itemsize else None
    numbers = Numbers(itemsize, saved_itemsize, mapped)
    machine = on or attrs.evolve(this_machine(device), processes=processes, neighbours=neighbours)
    cost = estimate(plan, shape, numbers, machine)
    warnings: list[str] = []
    for look in (
        partial(check_memory, cost, machine, partial(fitting, plan, shape, numbers, machine)),
        partial(check_disk, cost, plan.out),
    ):
        try:
            warnings += look()
        except UserError as error:
            if not elsewhere:
                raise
            hint = f" ({error.hint})" if error.hint else ""
            warnings.append(f"on this machine, {error.message}{hint}")
    skipped = min(skipped_share(run.pipeline, shape) for run in plan.runs)
    return Checked(cost, tuple(warnings), skipped, "" if on is None else on.name)


def device_of(machine: Machine) -> torch.device:
    """The kind of device that computes on a machine, here or not."""
    return torch.device("cpu" if machine.device is None else "cuda")


def check_not_exported(source: Source) -> None:
    """Refuse a folder that permllm exported as ``permuted`` or ``sparse``.

    Raises:
        UserError: it is one.
    """
    if not isinstance(source, DirectorySource) or not (source.path / MANIFEST).is_file():
        return
    form = read_manifest(source.path).format
    # A masked one may be pruned further; whether it is, its weights tell.
    if form != "masked":
        raise UserError(
            f"'{source.path}' is pruned already: it is a {form} export of permllm",
            hint="name the dense model that it was made from; "
            f"{own('eval', source.path)} measures an export",
        )


def check_not_quantised(source: Source, config: Any) -> None:
    """Refuse a model whose weights are saved in another form than numbers of their own.

    GGUF files are unpacked, whatever they hold.

    Raises:
        UserError: its configuration says that it is quantised.
    """
    quantised = getattr(config, "quantization_config", None)
    if quantised and isinstance(source, DirectorySource | HubSource):
        given = quantised if isinstance(quantised, dict) else vars(quantised)
        method = str(given.get("quant_method", "in some way"))
        raise UserError(
            f"{source.describe()} is quantised ({method}); permllm prunes floating-point weights",
            hint="name the model before quantisation, and quantise what is exported",
        )


def check_components(pipeline: Pipeline, path: Path | None) -> None:
    """Let every component look at what its options name.

    Raises:
        UserError: a file or a package is not there.
    """
    sections: list[tuple[tuple[str | int, ...], Any]] = [
        (("calibration", "dataset"), pipeline.calibration.dataset),
        (("layers",), pipeline.layers),
        *((("evaluate", index), part) for index, part in enumerate(pipeline.evaluate)),
        *((("export", index), part) for index, part in enumerate(pipeline.export)),
    ]
    for keys, section in sections:
        with blaming(path, *keys):
            for component in components_in(section):
                check = getattr(component, "check", None)
                if check is not None:
                    check()


def check_held_out(pipeline: Pipeline, path: Path | None) -> None:
    """Refuse evaluators that compare on held-out sequences where there are none.

    Raises:
        UserError: it names the evaluators.
    """
    comparing = [one.name for one in pipeline.evaluate if one.compares]
    if comparing and not pipeline.calibration.held_out:
        with blaming(path, "calibration", "held_out"):
            raise UserError(
                f"held_out is 0, but {' and '.join(comparing)} compare"
                f"{'s' * (len(comparing) == 1)} the pruned model with the dense one on held-out "
                "sequences",
                hint="set calibration.held_out to 1 or more, or take "
                f"{' and '.join(comparing)} out of evaluate",
            )


def check_folder(out: Path) -> None:
    """Try to write where the run's folder is or will be; leaves nothing there.

    Raises:
        UserError: nothing can be written there.
    """
    parent = existing_parent(out)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UserError(
            f"the output folder {out} cannot be written to: {error.strerror} ({parent})",
            hint="choose another --out",
        ) from error


def existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder (or file) above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_names(pipeline: Pipeline, shape: ModelShape, path: Path | None) -> None:
    """Whether every glob over the names of modules matches one.

    Raises:
        UserError: one does not, with the nearest that does.
    """
    for place, glob in globs(pipeline.layers):
        with blaming(path, "layers", *place):
            check_glob(glob, shape.matrices)


def check_patterns(pipeline: Pipeline, shape: ModelShape) -> None:
    """Whether M divides the input channels of every linear that is to be pruned.

    Raises:
        UserError: it names the first linear where it does not.
    """
    for name, channels in (shape.channels | shape.experts).items():
        settings = settings_of(name, pipeline)
        if settings is not None:
            check_channels(name, channels, settings.pattern)


def check_exports(pipeline: Pipeline, shape: ModelShape, path: Path | None) -> None:
    """Whether every exporter can write the patterns that linears are pruned to.

    Raises:
        UserError: one cannot.
    """
    chosen = (settings_of(name, pipeline) for name in shape.channels | shape.experts)
    patterns = dict.fromkeys(settings.pattern for settings in chosen if settings is not None)
    for index, exporter in enumerate(pipeline.export):
        with blaming(path, "export", index):
            for pattern in patterns:
                exporter.check_pattern(pattern)


def skipped_share(pipeline: Pipeline, shape: ModelShape) -> float:
    """The share of the decoder's weights that stay dense by ``layers.skip`` and overrides.

    Routers and what else stays dense is known once the model is traced.
    """
    sizes = shape.matrices
    skipped = sum(size for name, size in sizes.items() if settings_of(name, pipeline) is None)
    return skipped / max(1, sum(sizes.values()))


def check_lengths(pipeline: Pipeline, shape: ModelShape) -> None:
    """Whether no sequence is longer than the model's positions.

    Raises:
        UserError: one is.
    """
    workload = workload_of(pipeline, shape)
    lengths = {"calibration": pipeline.calibration.length}
    lengths |= {one.name: one.cost(workload).longest for one in pipeline.evaluate}
    for where, length in lengths.items():
        if shape.positions is not None and length > shape.positions:
            raise UserError(
                f"{where}: length is {length}, but the model takes sequences of at most "
                f"{shape.positions} tokens"
            )


def check_memory(cost: Estimate, machine: Machine, fits: Callable[[], str | None]) -> list[str]:
    """Warnings where memory may not suffice, of the machine itself or of its device.

    Args:
        cost: of the plan.
        machine: where it runs.
        fits: says what would need no more than there is, if anything would.

    Raises:
        UserError: it cannot suffice.
    """
    several = f" of {cost.neighbours} processes" * (cost.neighbours > 1)
    least = cost.neighbours * cost.least_memory_bytes
    if machine.host is not None and least > machine.host:
        raise UserError(
            f"not enough memory: at least {memory(least)} are needed for the weights and the "
            f"calibration text{several}, {memory(machine.host)} are available",
            hint=fewer(cost, machine.host) or fits() or SMALLER,
        )
    warnings = []
    for whose, needed, free, change in (
        (several, cost.together_bytes, machine.host, fewer(cost, machine.host)),
        (f" of {machine.name}", cost.device_bytes, machine.device, None),
    ):
        if free is not None and needed > free:
            hint = change or fits() or SMALLER
            warnings.append(
                f"memory{whose} may not suffice: about {memory(needed)} are needed, "
                f"{memory(free)} are available; {hint}"
            )
    return warnings


def fewer(cost: Estimate, free: int | None) -> str | None:
    """How many processes of a machine have room in its memory, if fewer than there are do.

    Args:
        cost: of the plan by so many.
        free: bytes that they have in common; None where that is not known.
    """
    for count in range(cost.neighbours - 1, 0, -1):
        if free is not None and attrs.evolve(cost, neighbours=count).together_bytes <= free:
            return f"there is room for {count} process{'es' * (count > 1)}"
    return None


def fitting(plan: Plan, shape: ModelShape, numbers: Numbers, machine: Machine) -> str | None:
    """What of ``stream`` and ``layers.window`` to change so that the memory suffices.

    The largest window is named for which there is room; None if there is none.
    """
    widest = max(window_layers(run.pipeline, shape) for run in plan.runs)
    smaller = [size for size in (64, 32, 16, 8, 4, 2, 1) if size < widest]
    for window in (None, *smaller):
        runs = tuple(
            attrs.evolve(run, pipeline=_streamed(run.pipeline, window)) for run in plan.runs
        )
        cost = estimate(attrs.evolve(plan, runs=runs), shape, numbers, machine)
        takes = ((cost.together_bytes, machine.host), (cost.device_bytes, machine.device))
        if all(free is None or needed <= free for needed, free in takes):
            change = (
                "stream: always"
                if window is None
                else (f"layers.window: {window} with stream: always")
            )
            where = " there" if cost.device_bytes else ""
            return (
                f"{change} would need about {memory(cost.device_bytes or cost.memory_bytes)}{where}"
            )
    return None


def _streamed(pipeline: Pipeline, window: int | None) -> Pipeline:
    if window is not None:
        pipeline = attrs.evolve(pipeline, layers=attrs.evolve(pipeline.layers, window=window))
    return attrs.evolve(pipeline, stream="always")


def check_disk(cost: Estimate, out: Path) -> list[str]:
    """A warning where the run's folder would nearly fill the disk.

    Raises:
        UserError: windows and exports of all runs do not fit beside what is there already.
    """
    free = shutil.disk_usage(existing_parent(out)).free
    needed = max(0, cost.disk_bytes - written(out / "runs"))
    if needed > free:
        raise UserError(
            f"not enough disk space: windows and exports of {cost.runs} pruned run"
            f"{'s' * (cost.runs != 1)} need about {memory(needed)} in {out}, with what is to be "
            f"left free; {memory(free)} are free",
            hint="choose an --out on another disk, or fewer runs and exports",
        )
    if 1.1 * needed > free:
        return [f"the disk will be nearly full: {memory(free)} are free at {out}"]
    return []


def written(folder: Path) -> int:
    """Bytes of the files that a folder holds already."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
