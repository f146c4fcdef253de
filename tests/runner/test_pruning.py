"""What pruners may refine and update, and what is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch

from permllm.api import run_plan
from permllm.components import Metric, PermutationLearner, Pruner, option
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.errors import RunFailed
from permllm.given import Giver
from permllm.hookspecs import hookimpl
from permllm.models.linears import Linear
from permllm.permutations.none import NoPermutation
from permllm.pruners.mask import Mask
from permllm.registry import Registry
from permllm.runner.pruning import LinearPruning, _updated
from permllm.runs.plan import make_plan
from permllm.runs.windows import load_window


@attrs.frozen
class LastOfFour(Pruner):
    """Keeps the last weights of every group, by scores that it makes up from the window."""

    name = "last-of-four"

    def refine(self, window: Any, permutations: Any) -> dict[str, torch.Tensor]:
        scores = {}
        others = [linear for linear in window.linears if linear not in window.linears_of(self)]
        assert {linear.rpartition(".")[2] for linear in others} == {"down_proj"}
        for group, permutation in permutations.items():
            places = torch.arange(len(permutation), dtype=torch.float32)[invert(permutation)]
            for linear in window.groups[group].linears:
                scores[linear] = places.expand_as(window.weight(linear)).contiguous()
        return scores

    def prune(
        self, weight: torch.Tensor, scores: torch.Tensor, pattern: Pattern, statistics: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = nm_mask(scores, pattern)
        return weight * mask, mask


class LastOfFourPlugin:
    @hookimpl
    def permllm_pruners(self) -> list[type[Pruner]]:
        return [LastOfFour]


def test_a_pruner_may_refine_the_scores_of_its_own_linears(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    layers = {
        "permutation": "cp",
        "pruner": "last-of-four",
        "overrides": [{"match": "*.down_proj", "pruner": "mask"}],
    }
    registry = Registry.load()
    registry.add(LastOfFourPlugin(), "last")
    plan = make_plan(write_pipeline(layers=layers, export=[]), registry, out=tmp_path / "out")
    run_plan(plan, registry)
    window = load_window(plan.runs[0].directory / "windows/000.safetensors")
    last = torch.tensor([False, False, True, True])
    for report in window.reports:
        pruned = window.weights[report.linear][:, window.permutations[report.group]]
        kept = (pruned != 0).unflatten(1, (-1, 4))
        refined = not report.linear.endswith("down_proj")
        assert bool((kept == last).all()) == refined, report.linear
        # Reports compare orders by the metric's scores, whatever decides what is kept.
        assert 0.5 < report.retained < 1, report.linear


@attrs.frozen
class Grown(Mask):
    """Puts something where it had cut."""

    name = "grown"

    def update(self, window: Any, weights: Any) -> dict[str, torch.Tensor]:
        return {linear: weight + 1 for linear, weight in weights.items()}


class GrownPlugin:
    @hookimpl
    def permllm_pruners(self) -> list[type[Pruner]]:
        return [Grown]


def test_an_update_that_is_not_nm_is_refused(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry.load()
    registry.add(GrownPlugin(), "grown")
    path = write_pipeline(layers={"permutation": "none", "pruner": "grown"})
    message = "pruner 'grown' updated model.layers.0.self_attn.q_proj where it had been cut to zero"
    with pytest.raises(RunFailed, match=message):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        (torch.ones(2, 4), None),
        ([1.0], "no tensor, but list"),
        (torch.ones(4, 2), r"of shape \(4, 2\), where the weight has \(2, 4\)"),
        (torch.tensor([[1, -0.5, 1, 1]] * 2), r"negative \(the least is -0\.5\)"),
        (torch.tensor([[1, torch.nan, torch.inf, 1]] * 2), r"not finite \(4 of 8\)"),
        (torch.tensor([[1, -1, torch.nan, 1]] * 2), r"not finite \(2 of 8\)"),
    ],
)
def test_refused_scores_say_what_is_wrong(scores: Any, fault: str | None) -> None:
    class OneLinear:
        linears = {"q_proj": Linear("q_proj", 0, "q_proj.weight", None, False, 2, 4)}

    class Mine:
        name = "mine"

    pruning, giver = LinearPruning(OneLinear(), {}, torch.device("cpu")), Giver("metric", Mine())
    if fault is None:
        pruning.check_scores(giver, "q_proj", scores)
        return
    with pytest.raises(RunFailed, match=f"^metric 'mine' gave scores for q_proj that are {fault}$"):
        pruning.check_scores(giver, "q_proj", scores)


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (None, "to None, where a tensor is expected"),
        (torch.ones(4, 2), r"to another shape or type than \(2, 4\)"),
        (torch.full((2, 4), torch.nan), "to NaN or infinite weights"),
        (torch.ones(2, 4), "where it had been cut to zero"),
    ],
)
def test_refused_updates_say_what_is_wrong(weight: Any, fault: str) -> None:
    giver = Giver("pruner", Mask())
    with pytest.raises(RunFailed, match=f"^pruner 'mask' updated q_proj {fault}$"):
        _updated(giver, "q_proj", torch.eye(2, 4), weight)


@attrs.frozen
class FirstHalf(Mask):
    """Keeps the channels of the first half, whatever the metric says."""

    name = "first-half"
    first: bool = True

    @property
    def refines_first(self) -> bool:  # type: ignore[override]
        return self.first

    def refine(self, window: Any, permutations: Any) -> dict[str, torch.Tensor]:
        if self.first:
            for name, permutation in permutations.items():
                assert permutation.equal(torch.arange(window.groups[name].channels))
        halves = {}
        for linear in window.linears:
            halves[linear] = torch.zeros_like(window.weight(linear))
            halves[linear][:, : halves[linear].shape[1] // 2] = 1
        return halves


class FirstHalfPlugin:
    @hookimpl
    def permllm_pruners(self) -> list[type[Pruner]]:
        return [FirstHalf]


@pytest.mark.parametrize(
    "pruner",
    [
        {"name": "first-half"},
        {"name": "distil", "steps": 1, "learning_rate": 0.0, "mask": "first-half"},
    ],
)
def test_learners_see_what_a_pruner_refines_first(
    pruner: dict[str, Any], write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry.load()
    registry.add(FirstHalfPlugin(), "half")
    layers = {"permutation": "cp", "pruner": pruner}
    plan = make_plan(write_pipeline(layers=layers, evaluate=[]), registry, out=tmp_path / "out")
    run_plan(plan, registry)
    window = load_window(plan.runs[0].directory / "windows/000.safetensors")
    for report in window.reports:
        pruned = window.weights[report.linear] != 0
        first, second = pruned.chunk(2, dim=1)
        assert bool(first.any()), report.linear
        assert not bool(second.any()), report.linear
        # By the scores that decide it would be 1.
        assert report.retained < 0.9, report.linear


@attrs.frozen
class Seen(Metric):
    """Scores from everything that a metric may see; writes down when it was asked."""

    name = "seen"
    asked: ClassVar[list[list[str]]] = []
    options: dict[str, int] = option(factory=dict, help="anything")

    def window_scores(self, window: Any, linears: Any) -> dict[str, torch.Tensor]:
        self.asked.append(list(linears))
        totals = {name: torch.zeros_like(window.weight(name)) for name in linears}
        for gradients in window.gradients(linears, lambda hidden, row: hidden.norm()):
            for name, gradient in gradients.items():
                totals[name] += gradient.square()
        return {
            name: (total.sqrt() + window.seed % 7 + 1) * (1 + window.layer_of(name)) + len(name)
            for name, total in totals.items()
        }


class SeenPlugin:
    @hookimpl
    def permllm_metrics(self) -> list[type[Metric]]:
        return [Seen]


def test_a_metric_may_look_at_the_whole_window(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry.load()
    registry.add(SeenPlugin(), "seen")
    Seen.asked.clear()
    layers = {
        "permutation": "cp",
        "metric": {"name": "seen", "options": {"any": 1}},
        "pruner": "sparsegpt",
        "overrides": [{"match": "*.down_proj", "metric": "wanda"}],
        "window": "all",
    }
    plan = make_plan(write_pipeline(layers=layers, evaluate=[]), registry, out=tmp_path / "out")
    run_plan(plan, registry)
    window = load_window(plan.runs[0].directory / "windows/000.safetensors")
    wanted = [one.linear for one in window.reports if not one.linear.endswith("down_proj")]
    # Once for the window, where others' scores are taken anew for every layer.
    assert Seen.asked == [wanted]


@attrs.frozen
class InPlace(Metric):
    """Makes its scores of the very weights."""

    name = "in-place"

    def scores(self, weight: torch.Tensor, statistics: Any) -> torch.Tensor:
        return weight.abs_()


@attrs.frozen
class SortsInPlace(NoPermutation):
    """Changes the weights that it learns from."""

    name = "sorts-in-place"

    def learn(self, window: Any) -> dict[str, torch.Tensor]:
        window.weight(window.linears[0]).zero_()
        return super().learn(window)


class InPlacePlugin:
    @hookimpl
    def permllm_metrics(self) -> list[type[Metric]]:
        return [InPlace]

    @hookimpl
    def permllm_permutations(self) -> list[type[PermutationLearner]]:
        return [SortsInPlace]


@pytest.mark.parametrize(
    ("layers", "who"),
    [
        ({"metric": "in-place"}, "metric 'in-place'"),
        ({"permutation": "sorts-in-place"}, "permutation learner 'sorts-in-place'"),
    ],
)
def test_what_changes_the_dense_weights_is_named(
    write_pipeline: Callable[..., Path], tmp_path: Path, layers: dict[str, str], who: str
) -> None:
    registry = Registry.load()
    registry.add(InPlacePlugin(), "in-place")
    path = write_pipeline(layers=layers, evaluate=[])
    with pytest.raises(RunFailed, match=rf"^{who} changed the model's model\.layers\.0\."):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)
