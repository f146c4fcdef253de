"""The stage before all windows: how much of each linear is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch

from permllm.components import Allocation
from permllm.contexts.allocation import PrunedLinear, flaw_of
from permllm.contexts.sequences import Sequences
from permllm.contexts.window import Window
from permllm.folding.constraints import Constraints
from permllm.given import Giver, by_name, plain_figures
from permllm.models.decoder import Decoder
from permllm.models.unchanged import unchanged
from permllm.pipeline.schema import Pipeline
from permllm.pruners.mask import Mask
from permllm.runner.caching.memo import Stages
from permllm.runner.selection import LinearSettings, settle
from permllm.runner.window_loop import WindowLoop
from permllm.runs.plan import Run


def allocated(
    decoder: Decoder,
    run: Run,
    sequences: Sequences,
    device: torch.device,
    hook: Any,
    *,
    constraints: Constraints,
    stages: Stages | None = None,
) -> dict[str, LinearSettings]:
    """Pattern, metric and pruner of every linear that a run prunes, as its allocation says.

    Args:
        decoder, run, sequences, device, hook, constraints, stages: as for
            :meth:`permllm.runner.window_loop.WindowLoop.of`.

    Raises:
        UserError: the pipeline does not fit the model.
        GivenWrong: the allocation gave patterns that do not fit, or keep too much.
    """
    settings = settle(decoder, run.pipeline)
    allocation = run.pipeline.layers.allocation
    linears = pruned_linears(decoder, settings, run.pipeline, constraints)
    if allocation is None or not linears:
        return settings
    # Nothing is pruned while it looks: a pruner that trains would do so in vain.
    plain = {name: attrs.evolve(settings[name], pruner=Mask()) for name in linears}
    layer_by_layer = attrs.evolve(run, pipeline=dense_layers(run.pipeline))
    stages = stages or Stages()
    chain = decoder, layer_by_layer, sequences, device, hook
    loop = WindowLoop.of(*chain, settings=plain, stages=Stages(world=stages.world))
    figures = stages.figures(
        "figures",
        stages.key("allocation", lambda: loop.keys.allocation(allocation)),
        lambda: figures_of(allocation, loop.dense_windows(allocation.needs)),
        stage=f"allocation ({allocation.name}), {run.label}",
    )
    giver = Giver("allocation", allocation)
    patterns = by_name(allocation.allocate(figures, linears), giver, "patterns")
    if flaw := flaw_of(patterns, linears):
        raise giver.wrong(flaw)
    return {
        name: attrs.evolve(one, pattern=patterns.get(name, one.pattern))
        for name, one in settings.items()
    }


def dense_layers(pipeline: Pipeline) -> Pipeline:
    """The pipeline with windows of one layer, each of which sees the dense ones before it."""
    layers = attrs.evolve(
        pipeline.layers, window=1, inputs="dense", foldable=False, residual="free"
    )
    return attrs.evolve(pipeline, layers=layers)


def figures_of(allocation: Allocation, windows: Iterable[Window]) -> dict[str, float]:
    """What an allocation wants to know of all layers.

    Raises:
        GivenWrong: it gave something else, or two layers' figures one name.
    """
    giver = Giver("allocation", allocation)
    figures: dict[str, float] = {}
    for window in windows:
        with unchanged(window.decoder.model, giver, sampled=0):
            given = allocation.figures(window)
        found = plain_figures(given, giver)
        if twice := sorted(figures.keys() & found.keys()):
            raise giver.wrong(f"gave figures of two layers the name '{twice[0]}'")
        figures |= found
    return figures


def pruned_linears(
    decoder: Decoder,
    settings: Mapping[str, LinearSettings],
    pipeline: Pipeline,
    constraints: Constraints,
) -> dict[str, PrunedLinear]:
    """The linears that get the pipeline's pattern, since no override gives them another."""
    return {
        linear: PrunedLinear(
            layer=group.layer,
            group=constraints.order_of(group.name),
            shape=decoder.linears[linear].shape,
            pattern=pipeline.pattern,
        )
        for group in decoder.groups.values()
        for linear in group.linears
        if linear in settings and settings[linear].pattern == pipeline.pattern
    }
