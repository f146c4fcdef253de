"""What every importance metric must do."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from permllm.components import Metric
from permllm.contexts.window import WholeTensors, Window
from permllm.testing.expect import expect, expect_close, expect_equal
from permllm.testing.linears import toy_linears
from permllm.testing.windows import toy_windows


def check_metric(metric: Metric) -> None:
    """Fail unless a metric keeps to its interface.

    Its scores have the weight's shape, are floating point in float32 or better, finite
    and non-negative, the same every time, and do not depend on the order in which
    batches came. It leaves its arguments as they are. This is checked for several shapes
    and types, rows and columns of zeros, and channels that never fire.

    The scores of a metric that looks at the whole window are held to the same, on windows
    that begin at the first layer and after it; it leaves the model and the global random
    state alone.
    """
    name = f"metric '{metric.name}'"
    if metric.looks():
        _check_window_scores(metric, name)
    if type(metric).scores is Metric.scores:
        return
    for toy in toy_linears():
        sums = toy.statistics(metric.needs)
        weight, kept = toy.weight.clone(), {key: value.clone() for key, value in sums.items()}
        scores = metric.scores(weight, sums)
        on = f"of {toy.what}"
        _check_scores(name, on, scores, weight)
        expect_equal(weight, toy.weight, f"{name}: scores() must leave the weight as it is")
        for key, value in kept.items():
            expect_equal(
                sums[key], value, f"{name}: scores() must leave statistic '{key}' as it is"
            )
        expect_equal(metric.scores(weight, sums), scores, f"{name}: the scores {on} must not vary")
        other = metric.scores(weight, toy.statistics(metric.needs, order=(2, 0, 1)))
        expect_close(other, scores, f"{name}: the scores {on} depend on the order of the batches")


def _check_window_scores(metric: Metric, name: str) -> None:
    for window, again in toy_windows(needs=metric.needs):
        unscored, fresh = _without_scores(window), _without_scores(again)
        before = {linear: window.weight(linear).clone() for linear in window.linears}
        state = torch.random.get_rng_state()
        found = metric.window_scores(unscored, window.linears)
        expect_equal(
            torch.random.get_rng_state(),
            state,
            f"{name}: window_scores() must draw from a generator seeded with window.seed, "
            "not from torch's global one",
        )
        for linear in window.linears:
            scores = found.get(linear)
            expect(scores is not None, f"{name}: window_scores() left out {linear}")
            assert scores is not None
            _check_scores(name, f"of {linear}", scores, before[linear])
            expect_equal(
                window.weight(linear), before[linear], f"{name}: window_scores() changed {linear}"
            )
        twice = metric.window_scores(fresh, window.linears)
        for linear in window.linears:
            expect_equal(
                twice[linear],
                found[linear],
                f"{name}: window_scores() gave two equal windows different scores",
            )
        one = window.linears[0]
        alone = metric.window_scores(_without_scores(window), [one])
        expect(alone.keys() == {one}, f"{name}: window_scores() must give those it is asked for")


def _check_scores(name: str, on: str, scores: Tensor, weight: Tensor) -> None:
    expect(
        isinstance(scores, Tensor) and scores.shape == weight.shape,
        f"{name}: the scores {on} must have its shape",
    )
    expect(
        scores.dtype in (torch.float32, torch.float64),
        f"{name}: the scores {on} must be in float32 or better, not {scores.dtype}",
    )
    expect(scores.isfinite().all(), f"{name}: the scores {on} must be finite")
    expect((scores >= 0).all(), f"{name}: the scores {on} must not be negative")


def _without_scores(window: Window) -> Window:
    """The window as metrics see it, which have yet to score it."""
    sums = {group: window.statistics(group) for group in window.groups}
    return attrs.evolve(window, tensors=WholeTensors(window.decoder, window.device, {}, sums))
