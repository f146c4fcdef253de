"""How much of each linear is kept, from the pipeline file to the export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from permllm.api import run, run_plan
from permllm.components import Allocation
from permllm.contexts.allocation import PrunedLinear
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern
from permllm.core.statistics import GRAM, Statistic
from permllm.errors import RunFailed, UserError
from permllm.formats.loading import load
from permllm.formats.manifest import read_manifest
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.results import RunResult
from permllm.runs.plan import make_plan

OWL = {"name": "owl", "threshold": 1, "spread": 0.25}


def by_layer(result: RunResult) -> dict[int, set[str]]:
    layers: dict[int, set[str]] = {}
    for report in result.layers:
        layers.setdefault(int(report.linear.split(".")[2]), set()).add(report.pattern)
    return layers


def test_layers_get_patterns_of_their_own_within_the_pipelines(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": "cp", "allocation": OWL}
    path = write_pipeline(pattern="4:8", layers=layers, export=["permuted"])
    result = run(path, out=tmp_path / "run").runs[1]
    patterns = by_layer(result)
    assert all(len(kept) == 1 for kept in patterns.values())
    assert len(set().union(*patterns.values())) > 1, "the layers differ"
    assert 0.5 <= result.figures["sparsity"] < 0.6
    folder = tmp_path / "run" / result.exports["permuted"]
    stored = {group.pattern for group in read_manifest(folder).groups}
    assert stored == set().union(*patterns.values())
    load(folder)
    even = run(path, ["layers.allocation.spread=0"], out=tmp_path / "even").runs[1]
    assert by_layer(even) == {layer: {"4:8"} for layer in patterns}


def test_figures_of_one_pattern_are_not_taken_for_another(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": "none", "allocation": {"name": "sensitivity", "sequences": 2}}
    path = write_pipeline(layers=layers, matrix={"pattern": ["2:4", "4:8"]}, evaluate=[])
    runs = run(path, out=tmp_path / "run").runs[1:]
    assert len(runs) == 2
    for result, m in zip(runs, (4, 8), strict=True):
        kept = set().union(*by_layer(result).values())
        assert {one.partition(":")[2] for one in kept} == {str(m)}
        assert len(kept) > 1, "groups differ"


@pytest.mark.parametrize("name", ["jamba", "mixtral", "qwen2-moe", "gpt-oss"])
def test_experts_that_share_a_permutation_get_one_pattern(
    name: str, write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": "cp", "allocation": {"name": "sensitivity", "sequences": 2}}
    path = write_pipeline(name, layers=layers, evaluate=[], export=[])
    assert run(path, out=tmp_path / "run").runs[1].error is None


def test_what_reads_a_residual_stream_in_one_order_gets_one_pattern(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": "cp", "window": "all", "residual": "shared", "foldable": True}
    path = write_pipeline(
        layers=layers | {"allocation": {"name": "sensitivity", "sequences": 2}}, evaluate=[]
    )
    kept: dict[str, set[str]] = {}
    for report in run(path, out=tmp_path / "run").runs[1].layers:
        kept.setdefault(report.linear.rpartition(".")[2], set()).add(report.pattern)
    assert kept["q_proj"] == kept["gate_proj"]
    assert len(kept["q_proj"]) == 1
    path = write_pipeline(pattern="4:8", layers=layers | {"allocation": OWL}, evaluate=[])
    with pytest.raises(UserError, match="owl gives each layer a pattern of its own"):
        run(path, out=tmp_path / "owl")


def test_an_override_keeps_its_own_pattern(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {
        "permutation": "none",
        "allocation": OWL,
        "overrides": [{"match": "model.layers.0.*", "pattern": "2:8"}],
    }
    path = write_pipeline(pattern="4:8", layers=layers, evaluate=[])
    assert by_layer(run(path, out=tmp_path / "run").runs[1])[0] == {"2:8"}


@attrs.frozen
class Told(Allocation):
    """Writes down what it is told, and gives one pattern."""

    name: ClassVar[str] = "told"
    needs: ClassVar[tuple[Statistic, ...]] = (GRAM,)

    seen: ClassVar[list[Any]] = []
    n: int = 4

    def figures(self, window: Window) -> dict[str, float]:
        group = window.group_of(window.linears[0])
        self.seen.append((window.layers, window.statistics(group)["gram"].shape))
        assert window.scores(window.linears[0]).isfinite().all()
        return {f"layer {window.index}": 1.5} if self.n else None  # type: ignore[return-value]

    def allocate(
        self, figures: Mapping[str, float], linears: Mapping[str, PrunedLinear]
    ) -> dict[str, Pattern]:
        assert figures == {"layer 0": 1.5, "layer 1": 1.5}
        return dict.fromkeys(linears, Pattern(self.n, 8))


class ToldPlugin:
    @hookimpl
    def permllm_allocations(self) -> list[type[Allocation]]:
        return [Told]


def test_an_allocation_sees_every_layer_once_and_keeps_no_more(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {"permutation": "none", "allocation": {"name": "told", "n": 3}}
    path = write_pipeline(pattern="4:8", layers=layers, evaluate=[])
    registry = Registry.load()
    registry.add(ToldPlugin(), "told")
    Told.seen.clear()

    def outcome(name: str, *settings: str) -> RunResult:
        plan = make_plan(path, registry, settings, tmp_path / name).settled()
        return run_plan(plan, registry, cache=tmp_path / "cache").runs[1]

    assert by_layer(outcome("run")) == {0: {"3:8"}, 1: {"3:8"}}
    assert [layers for layers, _ in Told.seen] == [range(1), range(1, 2)]
    outcome("pruner", "layers.pruner=sparsegpt")
    assert len(Told.seen) == 2, "what it saw is kept for other runs"
    with pytest.raises(RunFailed, match=r"allocation 'told' keeps .* where the pipeline's"):
        outcome("more", "layers.allocation.n=5")
    with pytest.raises(RunFailed, match=r"allocation 'told' gave figures as None, where a dict"):
        outcome("none", "layers.allocation.n=0")
