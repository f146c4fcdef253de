"""Estimates grow with what they depend on, and say so in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from permllm.components import PermutationLearner, Pruner, option
from permllm.contexts.cost import ComponentCost, Workload
from permllm.core.statistics import GRAM
from permllm.models.shape import ModelShape
from permllm.permutations.cp import Cp
from permllm.pipeline.reading import read_mapping
from permllm.pruners.distil import Distil
from permllm.pruners.mask import Mask
from permllm.registry import Registry
from permllm.runner.preflight import estimate as costs
from permllm.runner.preflight.footprint import PROGRAM_BYTES, Numbers
from permllm.runner.preflight.machine import Machine
from permllm.runs.plan import Plan, Run

SHAPE = ModelShape(
    parameters=135_000_000,
    pruned=106_000_000,
    layers=30,
    hidden=576,
    vocabulary=49_152,
    positions=8192,
    channels={},
)


NUMBERS = Numbers(computed=4, saved=4)
MACHINE = Machine("test", 1e11)


def plan(**changes: Any) -> Plan:
    """A plan of one run of a pipeline with some values changed."""
    data = {
        "model": {"source": "directory", "path": "model"},
        "pattern": "2:4",
        "layers": {"permutation": "none"},
        "evaluate": [{"name": "perplexity", "max_tokens": 1000}],
        "export": ["masked"],
        "track": {},
    }
    pipeline = read_mapping(data | changes, Registry.load())
    run = Run("only", pipeline, {}, Path("out/runs/only"))
    return Plan(pipeline, (run,), run, Path("out"))


def of(**changes: Any) -> costs.Estimate:
    return costs.estimate(plan(**changes), SHAPE, NUMBERS, MACHINE)


def test_learning_costs_time_and_memory() -> None:
    plain = of()
    learned = of(layers={"permutation": {"name": "lcp", "passes": 4}})
    longer = of(layers={"permutation": {"name": "lcp", "passes": 8}})
    assert plain.seconds < learned.seconds < longer.seconds < 2 * learned.seconds
    assert plain.memory_bytes < learned.memory_bytes
    assert learned.least_memory_bytes < learned.memory_bytes


def test_seconds_of_learning_are_operations_over_speed() -> None:
    four = of(layers={"permutation": {"name": "lcp", "passes": 4, "batch": 4}})
    five = of(layers={"permutation": {"name": "lcp", "passes": 5, "batch": 4}})
    # A pass over 16 sequences of 256 tokens: dense forward, forward and backward.
    assert five.seconds - four.seconds == pytest.approx(8 * 135e6 * 16 * 256 / 1e11)


def test_processes_with_windows_of_their_own_add_up_no_gradients() -> None:
    lcp = {"name": "lcp", "passes": 4, "batch": 2}
    on = attrs.evolve(MACHINE, processes=4, network=1e9)

    def by_four(inputs: str, window: int) -> costs.Estimate:
        section = {"permutation": lcp, "window": window, "inputs": inputs}
        return costs.estimate(plan(layers=section), SHAPE, NUMBERS, on)

    pruned, dense = by_four("pruned", 1), by_four("dense", 1)
    # Of 30 windows two are left over, in which four processes share steps of two sequences.
    assert dense.exchange_seconds == pytest.approx(pruned.exchange_seconds * 2 / 30)
    assert dense.seconds < 0.7 * pruned.seconds
    whole = (by_four(inputs, 30) for inputs in ("pruned", "dense"))
    assert len({one.seconds for one in whole}) == 1


def test_runs_with_one_learner_search_once() -> None:
    shape = attrs.evolve(SHAPE, channels={f"linear{index}": 8 for index in range(10)})
    both = plan(layers={"permutation": {"name": "cp", "time_limit": 5.0}})
    twice = attrs.evolve(both, runs=both.runs * 2)
    assert costs.search_seconds(both, shape) == costs.search_seconds(twice, shape) == 30.0
    assert costs.search_seconds(plan(), shape) == 0.0


def test_a_search_counts_again_where_another_learner_starts_from_it() -> None:
    shape = attrs.evolve(SHAPE, channels={f"linear{index}": 8 for index in range(10)})
    search = {"name": "cp", "time_limit": 5.0}
    alone = plan(layers={"permutation": search})
    start = plan(layers={"permutation": {"name": "lcp", "start": search}})
    both = attrs.evolve(alone, runs=alone.runs + start.runs)
    assert costs.search_seconds(both, shape) == 60.0


def test_small_windows_need_less_memory_at_the_peak() -> None:
    lcp = {"name": "lcp", "passes": 1}
    whole = of(layers={"permutation": lcp, "window": "all"})
    one = of(layers={"permutation": lcp, "window": 1})
    assert one.memory_bytes < whole.memory_bytes


def test_disk_holds_windows_and_exports() -> None:
    # An export leaves 64 MiB free.
    windows, weights, spare = 4 * 106_000_000, 4 * 135_000_000, 64 * 2**20
    assert of(export=[]).disk_bytes == windows
    assert of().disk_bytes == windows + weights + spare
    half = {"name": "permuted", "dtype": "bfloat16"}
    assert of(export=["masked", half]).disk_bytes == windows + 1.5 * weights + spare
    # Of the pruned weights half the values, and two bits for each that stays.
    packed = 4 * (135_000_000 - 106_000_000) + 106_000_000 * (2 + 1 / 8)
    assert of(export=["sparse"]).disk_bytes == windows + packed + spare


def test_disk_is_that_of_all_runs_whatever_each_exports() -> None:
    one, other = plan(export=[]), plan(export=["masked"])
    both = attrs.evolve(one, runs=one.runs + other.runs)
    assert costs.estimate(both, SHAPE, NUMBERS, MACHINE).disk_bytes == (
        of().disk_bytes + of(export=[]).disk_bytes
    )


def test_huge_calibration_needs_memory_in_any_case() -> None:
    huge = {"sequences": 1_000_000, "length": 8192}
    assert of(calibration=huge).least_memory_bytes > 60e9


def test_a_budget_takes_its_time() -> None:
    start = {"name": "none"}
    plain = of()
    learned = of(layers={"permutation": {"name": "lcp", "budget": "5m", "start": start}})
    assert learned.seconds - plain.seconds == pytest.approx(300.0)
    both = {"permutation": {"name": "lcp", "budget": "5m", "start": start}}
    both["pruner"] = {"name": "distil", "budget": "1m"}
    assert of(layers=both).seconds - plain.seconds == pytest.approx(360.0)


LINEARS = attrs.evolve(
    SHAPE,
    channels={f"model.layers.{index}.{name}": 8 for index in range(30) for name in ("up", "down")},
    shapes={f"model.layers.{index}.up.weight": (16, 8) for index in range(30)},
)
"""With two linears a layer, ``[16, 8]`` and ``[8, 8]``."""


@attrs.frozen
class Slow(Pruner):
    """Takes two seconds for a linear, and memory."""

    name = "slow"
    seconds_per_linear = 2.0
    size: int = 0

    def cost(self, workload: Workload) -> ComponentCost:
        return ComponentCost(bytes=self.size, operations=3e11) + super().cost(workload)


def with_pruner(pruner: Pruner, **layers: Any) -> costs.Estimate:
    changed = plan(layers={"permutation": "none"} | layers)
    pipeline = attrs.evolve(
        changed.pipeline, layers=attrs.evolve(changed.pipeline.layers, pruner=pruner)
    )
    runs = tuple(attrs.evolve(run, pipeline=pipeline) for run in changed.runs)
    return costs.estimate(
        attrs.evolve(changed, pipeline=pipeline, runs=runs), LINEARS, NUMBERS, MACHINE
    )


def test_a_pruner_says_what_it_takes_for_its_own_linears() -> None:
    plain = with_pruner(Mask())
    slow = with_pruner(Slow(2**30))
    # Two seconds for each of 60 linears, and operations at the machine's speed.
    assert slow.seconds - plain.seconds == pytest.approx(120.0 + 3.0)
    assert slow.memory_bytes - plain.memory_bytes == 2**30
    assert slow.least_memory_bytes == plain.least_memory_bytes
    half = with_pruner(Slow(), overrides=[{"match": "*.down", "pruner": "mask"}])
    assert half.seconds - plain.seconds == pytest.approx(60.0 + 3.0)
    skipped = with_pruner(Slow(), skip=["*.up", "model.layers.0.down"])
    assert skipped.seconds - plain.seconds == pytest.approx(58.0 + 3.0)


def test_a_pruner_that_another_uses_counts() -> None:
    plain = with_pruner(Distil(steps=1))
    slow = with_pruner(Distil(steps=1, mask=Slow()))
    assert slow.seconds - plain.seconds == pytest.approx(120.0 + 3.0)


def test_a_pruner_that_searches_counts_in_every_run() -> None:
    @attrs.frozen
    class Searching(Pruner):
        """Looks for something first."""

        name = "searching"
        start: PermutationLearner = option(factory=Cp, help="what is searched")

    plain, searching = with_pruner(Mask()), with_pruner(Searching(Cp(time_limit=2.0)))
    assert searching.seconds - plain.seconds == pytest.approx(2.0 * 36)


def test_sparsegpt_takes_time_and_memory_for_its_hessians() -> None:
    wide = attrs.evolve(SHAPE, channels={f"l{index}": 4096 for index in range(210)})

    def gpt(pruner: str, shape: ModelShape, **layers: Any) -> costs.Estimate:
        chosen = {"permutation": "none", "pruner": pruner} | layers
        return costs.estimate(plan(layers=chosen), shape, NUMBERS, MACHINE)

    mask, sparse = gpt("mask", wide), gpt("sparsegpt", wide)
    # Factors and updates of 210 linears: hours at this speed, not minutes.
    assert 600 < sparse.seconds - mask.seconds < 7200
    hessian = 4 * 4096**2
    assert 6 * hessian < sparse.memory_bytes - mask.memory_bytes < 12 * hessian


def test_statistics_of_a_window_need_memory() -> None:
    @attrs.frozen
    class AtOnce(Pruner):
        """Wants all Gram matrices of the window."""

        name = "at-once"
        needs = (GRAM,)

    plain = with_pruner(Mask())
    every = with_pruner(AtOnce()).memory_bytes - plain.memory_bytes
    one = with_pruner(AtOnce(), window=1).memory_bytes - with_pruner(Mask(), window=1).memory_bytes
    assert every == pytest.approx(4 * 0.6 * 60 * 8**2, rel=0.01)
    assert one == pytest.approx(every / 30, rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "1.0 s"), (7.6, "8.0 s"), (64.0, "1 min"), (83.0, "1 min 20 s"), (512.0, "9 min"),
     (7265.0, "2 h 1 min")],
)  # fmt: skip
def test_an_estimate_claims_no_more_than_it_can_tell(seconds: float, shown: str) -> None:
    estimate = costs.Estimate(1, 1, seconds, 2**30, 2**30, 2**30)
    assert estimate.time == shown
    assert estimate.summary().startswith(f"about {shown}, 1.0 GiB of memory")


def test_mapped_weights_take_memory_by_the_window() -> None:
    def least(window: int | str, mapped: int | None, **changes: Any) -> int:
        numbers = Numbers(4, 2, mapped)
        changed = plan(layers={"window": window}, **changes)
        return costs.estimate(changed, SHAPE, numbers, MACHINE).least_memory_bytes

    whole, around = SHAPE.parameters + SHAPE.pruned, SHAPE.parameters - SHAPE.pruned
    one = SHAPE.pruned // SHAPE.layers
    streams = least(1, None) - PROGRAM_BYTES - 4 * whole
    assert least(1, 2) == PROGRAM_BYTES + 4 * (around + 2 * one) + streams
    tokens = least("all", None) - PROGRAM_BYTES - 4 * whole
    assert least("all", 2) == PROGRAM_BYTES + 4 * (around + one + SHAPE.pruned) + tokens
    streamed = least("all", 2, stream="always")
    assert streamed == PROGRAM_BYTES + 4 * (around + 2 * one) + tokens


def test_an_allocation_takes_a_pass() -> None:
    plain, looked = (
        costs.run_operations(plan(layers={"allocation": one}).pipeline, SHAPE)
        for one in (None, "owl")
    )
    pipeline = plan().pipeline
    tokens = pipeline.calibration.sequences * pipeline.calibration.length
    assert looked - plain == costs.FORWARD * tokens * SHAPE.parameters
