"""Whatever a run depends on is in its key, and nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from permllm.api import run_plan
from permllm.components import Evaluator
from permllm.errors import RunFailed
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.runs.plan import make_plan

Write = Callable[..., Path]


CHANGES = [
    "pattern=1:4",
    "seed=3",
    "layers.metric=ria",
    "layers.permutation=greedy",
    "layers.pruner=sparsegpt",
    "layers.window=1",
    "layers.inputs=dense",
    "layers.allocation=owl",
    "layers.skip=['*.o_proj']",
    "layers.overrides=[{match: '*.o_proj', metric: ria}]",
    "calibration.seed=1",
    "calibration.sequences=3",
    "calibration.held_out=1",
    "calibration.length=16",
    "calibration.batch_size=1",
    "evaluate.0.length=16",
    "evaluate.0.max_tokens=64",
    "dtype=float64",
]


def test_every_change_of_a_pipeline_is_another_run(write_pipeline: Write, tmp_path: Path) -> None:
    """Whatever may change the windows or the figures changes the keys of the runs."""
    from permllm.runner.caching.store import Cache
    from permllm.runner.identity import RunIdentity
    from permllm.runner.one_run import OneRun
    from permllm.runner.shared import Shared

    path, cache = write_pipeline(layers={"permutation": "cp"}), Cache(tmp_path / "cache")

    def key(*settings: str) -> str | None:
        registry = Registry.load()
        plan = make_plan(path, registry, settings, tmp_path / f"out-{next(number)}")
        return RunIdentity.of(OneRun(Shared(plan, registry, cache), plan.runs[0])).key

    number = itertools.count()
    before = key()
    assert before is not None
    assert key("track={}") == before
    keys = {change: key(change) for change in CHANGES}
    assert len({before, *keys.values()}) == len(CHANGES) + 1
    text = tmp_path / "test.txt"
    kept = text.read_text()
    text.write_text(kept + "more")
    assert key() != before
    text.write_text(kept)
    assert key() == before
    model = tmp_path / "llama/config.json"
    model.write_text(model.read_text() + "\n")
    assert key() != before


@attrs.frozen
class SaysSparse(Evaluator):
    """Gives the run's own figure another value."""

    name = "says-sparse"
    share: float = 0.9

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        return {"sparsity": self.share if context.saved else 0.0}


class SaysSparsePlugin:
    @hookimpl
    def permllm_evaluators(self) -> list[type[Evaluator]]:
        return [SaysSparse]


def test_no_evaluator_replaces_a_figure_of_the_run(write_pipeline: Write, tmp_path: Path) -> None:
    path = write_pipeline(layers={"permutation": "none"}, evaluate=["sparsity", "says-sparse"])
    registry = Registry.load()
    registry.add(SaysSparsePlugin(), "says")
    with pytest.raises(RunFailed, match=r"gives 0\.9 as 'sparsity', which is the run's own fig"):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)
    same = make_plan(path, registry, ["evaluate.1.share=0.5"], tmp_path / "same").settled()
    assert run_plan(same, registry).runs[1].figures["sparsity"] == 0.5


@attrs.frozen
class SaysOne(Evaluator):
    """Gives one figure."""

    name = "says-one"
    value: float = 1.0

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        return {"one": self.value}


def test_no_evaluator_replaces_a_figure_of_another(write_pipeline: Write, tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def permllm_evaluators(self) -> list[type[Evaluator]]:
            return [SaysOne]

    path = write_pipeline(evaluate=["says-one", {"name": "says-one", "value": 2.0}])
    registry = Registry.load()
    registry.add(Plugin(), "says")
    fault = r"^evaluator 'says-one' gives 2 as 'one', which is another evaluator's figure \(1\)"
    with pytest.raises(RunFailed, match=fault):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)


@attrs.frozen
class Halves(Evaluator):
    """Changes an embedding of the pruned model, or of the dense one."""

    name = "halves"
    repeatable = False
    dense: bool = False

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        if self.dense or context.saved:
            model.get_input_embeddings().weight.data.mul_(0.5)
        return {"one": 1.0}


@pytest.mark.parametrize("dense", [True, False])
def test_no_evaluator_changes_the_model_for_those_after_it(
    write_pipeline: Write, tmp_path: Path, dense: bool
) -> None:
    class Plugin:
        @hookimpl
        def permllm_evaluators(self) -> list[type[Evaluator]]:
            return [Halves]

    # Other runs, which would be of another model, are not begun.
    path = write_pipeline(
        evaluate=[{"name": "halves", "dense": dense}],
        matrix={"layers.permutation": ["none", "cp"]},
    )
    registry = Registry.load()
    registry.add(Plugin(), "halves")
    fault = r"^evaluator 'halves' changed the model's model\.embed_tokens\.weight, which others"
    with pytest.raises(RunFailed, match=fault):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)
