"""The contracts let good components pass, and say what is wrong with bad ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from permllm.components import (
    Dataset,
    Evaluator,
    Exporter,
    Metric,
    Observer,
    PermutationLearner,
    Pruner,
)
from permllm.core.patterns import Pattern, nm_mask
from permllm.hookspecs import hookimpl
from permllm.pruners.mask import Mask
from permllm.testing import (
    check_dataset,
    check_evaluator,
    check_exporter,
    check_metric,
    check_observer,
    check_permutation_learner,
    check_pruner,
)
from permllm.testing.windows import toy_window


def fails(check: Callable[..., None], component: object, message: str, **options: Any) -> None:
    """Expect a contract to fail and to say why."""
    with pytest.raises(AssertionError, match=message):
        check(component, **options)


@attrs.frozen(eq=False)
class AnyMetric(Metric):
    """Scores by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        return self.function(weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w.float(), "must not be negative"),
        (lambda w: w.abs().float().sum(1), "must have its shape"),
        (lambda w: 1 / w.abs().float(), "must be finite"),
        (lambda w: w.abs(), r"float32 or better, not torch\.bfloat16"),
        (lambda w: w.abs().float() + torch.rand(w.shape), "must not vary"),
        (lambda w: w.abs_().float(), "must leave the weight as it is"),
    ],
)
def test_bad_metrics(function: Callable[[Tensor], Tensor], message: str) -> None:
    check_metric(AnyMetric(lambda w: w.abs().float()))
    fails(check_metric, AnyMetric(function), f"metric 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyPruner(Pruner):
    """Prunes by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        mask = nm_mask(scores, pattern)
        return self.function(weight * mask, mask)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, m: (w.double(), m), "must keep its shape and type"),
        (lambda w, m: (w, m.float()), "must be a BoolTensor"),
        (lambda w, m: (w, torch.ones_like(m)), "at most N of every M"),
        (lambda w, m: (w + 1, m), "must be zero where the mask is False"),
        (lambda w, m: (w + m * torch.nan, m), "must be finite"),
        (lambda w, m: (m * torch.rand(m.shape).to(w.dtype), m), "the same every time"),
    ],
)
def test_bad_pruners(function: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    check_pruner(AnyPruner(lambda w, m: (w, m)))
    fails(check_pruner, AnyPruner(function), f"pruner 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyRefiner(AnyPruner):
    """Refines the scores of every linear by a function of the window and its name."""

    function: Any

    def refine(self, window: Any, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {linear: self.function(window, linear) for linear in window.linears}

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        mask = nm_mask(scores, pattern)
        return weight * mask, mask


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w, name: w.scores(name)[:, 1:], "of its shape"),
        (lambda w, name: -w.scores(name), "must not be negative"),
        (lambda w, name: w.scores(name) / 0, "must be finite"),
        (lambda w, name: torch.rand(w.weight(name).shape), "generator seeded with window.seed"),
        (lambda w, name: w.scores(name) + next(COUNTER), "two equal windows different scores"),
        (lambda w, name: w.scores(name).add_(1), "changed the metric's scores"),
        (lambda w, name: w.weight(name).detach().abs_(), "changed model.layers.0"),
    ],
)
def test_bad_refinements(function: Callable[[Any, str], Tensor], message: str) -> None:
    check_pruner(AnyRefiner(lambda w, name: w.scores(name).sqrt()))
    fails(check_pruner, AnyRefiner(function), f"pruner 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyUpdater(Mask):
    """Updates every weight by a function of it."""

    name: ClassVar[str] = "any"
    function: Any

    def update(self, window: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {linear: self.function(weight) for linear, weight in weights.items()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: w[:, 1:], "keep the shape and type"),
        (lambda w: w.double(), "keep the shape and type"),
        (lambda w: w + 1, "leave what is cut from .* at zero"),
        (lambda w: w * math.inf, "NaN or infinity"),
        (lambda w: w * torch.rand(w.shape), "generator seeded with window.seed"),
        (lambda w: w * (1 + next(COUNTER)), "two equal windows different weights"),
        (lambda w: w.mul_(2), "changed its argument"),
    ],
)
def test_bad_updates(function: Callable[[Tensor], Tensor], message: str) -> None:
    check_pruner(AnyUpdater(lambda w: 2 * w))
    fails(check_pruner, AnyUpdater(function), f"pruner 'any': .*{message}")


COUNTER = itertools.count()


@attrs.frozen(eq=False)
class AnyLearner(PermutationLearner):
    """Orders channels by a function of their number."""

    name: ClassVar[str] = "any"
    function: Any

    def learn(self, window: Any) -> dict[str, Tensor]:
        return {name: self.function(group.channels) for name, group in window.groups.items()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda n: torch.zeros(n, dtype=torch.long), "each of 0 to 31 once"),
        (lambda n: torch.arange(n + 1), "each of 0 to 31 once"),
        (lambda n: torch.arange(n, dtype=torch.int32), "expected a LongTensor"),
        (torch.randperm, "must draw from a generator seeded with window.seed"),
    ],
)
def test_bad_learners(function: Callable[[int], Tensor], message: str) -> None:
    check_permutation_learner(AnyLearner(torch.arange))
    fails(check_permutation_learner, AnyLearner(function), f"learner 'any': .*{message}")


def test_learners_that_break_their_promise() -> None:
    def reverse_pairs(count: int) -> Tensor:
        return torch.arange(count).view(-1, 2).T.reshape(-1)

    learner = AnyLearner(reverse_pairs)
    check_permutation_learner(learner)
    fails(check_permutation_learner, learner, "less than the .* of the original", never_worse=True)
    unseeded = AnyLearner(lambda n: torch.randperm(n, generator=GENERATOR))
    fails(check_permutation_learner, unseeded, "two equal windows gave two permutations")
    check_permutation_learner(unseeded, deterministic=False)


GENERATOR = torch.Generator().manual_seed(0)


@attrs.frozen(eq=False)
class AnyDataset(Dataset):
    """Texts by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def texts(self, split: str) -> Iterator[str]:
        yield from self.function()


def test_bad_datasets() -> None:
    check_dataset(AnyDataset(lambda: ["one", "two"]))
    fails(check_dataset, AnyDataset(list), "the split 'train' has no texts")
    fails(check_dataset, AnyDataset(lambda: ["one", " "]), "text 1 of 'train' must be a str")
    counter = iter(range(100))
    fails(check_dataset, AnyDataset(lambda: [str(next(counter))]), "in another order each time")


@attrs.frozen(eq=False)
class AnyEvaluator(Evaluator):
    """Figures by a function of the model and the context."""

    name: ClassVar[str] = "any"
    function: Any

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        return self.function(model, context)


def train(model: Any, context: Any) -> dict[str, float]:
    model.train()
    return {"a": 1.0}


def too_far(model: Any, context: Any) -> dict[str, float]:
    context.progress(2, 1)
    return {"a": 1.0}


@torch.no_grad()
def change(model: Any, context: Any) -> dict[str, float]:
    next(model.parameters()).zero_()
    return {"a": 1.0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model, context: {}, "must give figures"),
        (lambda model, context: {"a": float("nan")}, "must be a finite float"),
        (lambda model, context: {"a": torch.ones(())}, "must be a finite float"),
        (lambda model, context: {"a": float(context.batch_size)}, "in batches of 2 and"),
        (train, "must leave the model in eval mode"),
        (too_far, "reports progress of 2 of 1"),
        (change, "changed model.embed_tokens.weight"),
    ],
)
def test_bad_evaluators(function: Callable[..., Any], message: str) -> None:
    check_evaluator(AnyEvaluator(lambda model, context: {"a": 1.0}))
    fails(check_evaluator, AnyEvaluator(function), f"evaluator 'any': .*{message}")


@attrs.frozen(eq=False)
class AnyExporter(Exporter):
    """Exports by a function of the folder."""

    name: ClassVar[str] = "any"
    function: Any

    def export(self, context: Any, directory: Path) -> None:
        self.function(directory)


def test_bad_exporters() -> None:
    check_exporter(AnyExporter(lambda folder: (folder / "a").write_text("text")))
    fails(check_exporter, AnyExporter(lambda folder: None), "wrote no file")
    fails(check_exporter, AnyExporter(lambda folder: (folder / "a").touch()), "an empty file")

    def astray(folder: Path) -> None:
        for path in (folder / "a", folder.parent / "b"):
            path.write_text("text")

    fails(check_exporter, AnyExporter(astray), "must write into the given folder only")


@attrs.frozen(eq=False)
class AnyObserver(Observer):
    """Watches with a given object."""

    name: ClassVar[str] = "any"
    watcher: Any

    def watch(self, out: Path, warn: Any) -> object:
        return self.watcher


class Steps:
    """Remembers the hooks that it was called through."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def permllm_training_step(self, step: int) -> None:
        self.seen.append(f"step {step}")

    @hookimpl
    def permllm_run_failed(self, run: Any) -> None:
        self.seen.append(f"{run.label} failed")

    @hookimpl
    def permllm_stage_reused(self, run: Any) -> None:
        self.seen.append(f"{run.label} reused")

    @hookimpl
    def permllm_plan_failed(self, error: BaseException) -> None:
        self.seen.append(type(error).__name__)

    @hookimpl
    def permllm_plan_finished(self, results: Any) -> None:
        self.seen.append(",".join(run.label for run in results.runs))


def test_an_observer_is_led_through_every_course() -> None:
    steps = Steps()
    check_observer(AnyObserver(steps))
    whole = ["step 1", "step 2", "step 3"] * 2 + ["dense,seed=1,seed=2"]
    around = ["seed=1 failed", "seed=2 reused", "dense,seed=1,seed=2"]
    assert steps.seen == [*whole, *around, "RuntimeError", "step 1", "KeyboardInterrupt"]


def test_bad_observers() -> None:
    class Misspelt:
        @hookimpl
        def permllm_run_start(self) -> None:
            pass

    class Breaks:
        @hookimpl
        def permllm_plan_failed(self, run: Any) -> None:
            raise LookupError(run.label)

    fails(check_observer, AnyObserver(object()), "has no method with @permllm.hookimpl")
    fails(check_observer, AnyObserver(Misspelt()), "there is no hook 'permllm_run_start'")
    with pytest.raises(AttributeError, match="label"):
        check_observer(AnyObserver(Breaks()))


def test_toy_windows_are_as_the_runner_makes_them() -> None:
    window = toy_window(pattern=Pattern(1, 4), layers=range(1, 2), sequences=6, held_out=3)
    assert len(window.tokens) == 9
    assert (window.calibration, len(window.learning), len(window.held_out)) == (3, 6, 3)
    assert {group.layer for group in window.groups.values()} == {1}
    for name, group in window.groups.items():
        assert window.pattern(name) == Pattern(1, 4)
        assert window.group_scores(name).shape[1] == group.channels
    rows = torch.tensor([0, 8])
    # Dense weights give the dense model's outputs.
    assert torch.equal(window.outputs({}, rows), window.targets(rows))
