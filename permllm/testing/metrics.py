"""What every importance metric must do."""

from __future__ import annotations

import torch

from permllm.components import Metric
from permllm.testing.expect import expect, expect_close, expect_equal
from permllm.testing.linears import toy_linears


def check_metric(metric: Metric) -> None:
    """Fail unless a metric keeps to its interface.

    Its scores have the weight's shape, are floating point in float32 or better, finite
    and non-negative, the same every time, and do not depend on the order in which
    batches came. It leaves its arguments as they are. This is checked for several shapes
    and types, rows and columns of zeros, and channels that never fire.
    """
    name = f"metric '{metric.name}'"
    for toy in toy_linears():
        sums = toy.statistics(metric.needs)
        weight, kept = toy.weight.clone(), {key: value.clone() for key, value in sums.items()}
        scores = metric.scores(weight, sums)
        on = f"of {toy.what}"
        expect(
            isinstance(scores, torch.Tensor) and scores.shape == weight.shape,
            f"{name}: the scores {on} must have its shape",
        )
        expect(
            scores.dtype in (torch.float32, torch.float64),
            f"{name}: the scores {on} must be in float32 or better, not {scores.dtype}",
        )
        expect(scores.isfinite().all(), f"{name}: the scores {on} must be finite")
        expect((scores >= 0).all(), f"{name}: the scores {on} must not be negative")
        expect_equal(weight, toy.weight, f"{name}: scores() must leave the weight as it is")
        for key, value in kept.items():
            expect_equal(
                sums[key], value, f"{name}: scores() must leave statistic '{key}' as it is"
            )
        expect_equal(metric.scores(weight, sums), scores, f"{name}: the scores {on} must not vary")
        other = metric.scores(weight, toy.statistics(metric.needs, order=(2, 0, 1)))
        expect_close(other, scores, f"{name}: the scores {on} depend on the order of the batches")
