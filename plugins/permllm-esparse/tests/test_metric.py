"""The metric's contract, its definition, and channels that say nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from permllm_esparse.entropy import channel_entropy
from permllm_esparse.histogram import HISTOGRAM
from permllm_esparse.metric import ESparse, with_trace
from torch import Tensor

import permllm
from permllm.core.patterns import Pattern, is_nm, nm_mask
from permllm.core.statistics import SQUARE_SUM, TOKENS
from permllm.testing import check_metric
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer

METRICS = [ESparse(), ESparse(bins=10, norm="rms"), ESparse(amplitude=0)]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_contract(metric: ESparse) -> None:
    check_metric(metric)


def linear(seed: int, rows: int = 6, channels: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    size = torch.rand(channels, generator=generator, dtype=torch.float64) * 3
    inputs = torch.randn(40, channels, generator=generator, dtype=torch.float64) * size
    return weight, inputs


def sums(inputs: Tensor) -> dict[str, Tensor]:
    return {need.name: need.partial(inputs) for need in ESparse.needs}


def test_the_definition() -> None:
    weight, inputs = linear(0)
    information = channel_entropy(HISTOGRAM.partial(inputs), 100)
    norm = inputs.norm(dim=0)
    for metric, importance in (
        (ESparse(), information + norm),
        (ESparse(amplitude=0.25), information + norm / 4),
        (ESparse(amplitude=0), information),
        (ESparse(norm="rms"), information + norm / 40**0.5),
        (ESparse(bins=7), channel_entropy(HISTOGRAM.partial(inputs), 7) + norm),
    ):
        scores = metric.scores(weight, sums(inputs))
        torch.testing.assert_close(scores, weight.abs() * importance)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(METRICS))
def test_permuting_weight_and_statistics_together_permutes_the_scores(
    seed: int, metric: ESparse
) -> None:
    weight, inputs = linear(seed)
    permutation = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    total = sums(inputs)
    moved = {need.name: need.permuted(total[need.name], permutation) for need in metric.needs}
    scores = metric.scores(weight, total)
    torch.testing.assert_close(metric.scores(weight[:, permutation], moved), scores[:, permutation])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5))
def test_rms_does_not_depend_on_the_number_of_tokens(seed: int, times: int) -> None:
    weight, inputs = linear(seed)
    once, often = sums(inputs), sums(inputs.repeat(times, 1))
    metric = ESparse(norm="rms")
    torch.testing.assert_close(metric.scores(weight, often), metric.scores(weight, once))


def test_of_two_inputs_of_one_norm_the_informative_one_matters_more() -> None:
    spread = torch.linspace(-1, 1, 64)
    lone = torch.zeros(64)
    lone[0] = spread.norm()
    inputs = torch.stack([spread, lone], 1)
    scores = ESparse().scores(torch.ones(1, 2), sums(inputs))
    assert scores[0, 0] > scores[0, 1]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_weights_of_channels_that_never_fire_are_ranked_by_their_size(metric: ESparse) -> None:
    weight, inputs = linear(3)
    inputs[:, :4] = 0
    scores = metric.scores(weight, sums(inputs))
    largest = nm_mask(weight.abs()[:, :4], Pattern(2, 4))
    assert torch.equal(nm_mask(scores[:, :4], Pattern(2, 4)), largest)
    # They do not win against channels that fire.
    assert scores[:, :4].max() < scores[:, 4:].min()


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_an_expert_that_no_token_reaches_is_ranked_by_its_weights(metric: ESparse) -> None:
    weight, inputs = linear(4)
    unseen = sums(inputs[:0])
    assert unseen[TOKENS.name] == 0
    # What permllm puts in place of the sum over no tokens.
    unseen[SQUARE_SUM.name] = torch.ones(weight.shape[1])
    scores = metric.scores(weight, unseen)
    expected = weight.abs() * (metric.amplitude or 1)
    torch.testing.assert_close(scores, expected)


def test_a_trace_is_left_to_every_channel() -> None:
    assert with_trace(torch.zeros(3)).tolist() == [1, 1, 1]
    kept = with_trace(torch.tensor([0.0, 2.0, 1.0]))
    assert kept[1:].tolist() == [2, 1]
    assert 0 < kept[0] < 1e-6


def test_prunes_a_mixture_of_experts_of_which_some_see_no_token() -> None:
    model = tiny_model("mixtral")
    pruned = permllm.prune(
        model,
        byte_tokenizer(),
        {
            "pattern": "2:4",
            "device": "cpu",
            "calibration": {"sequences": 1, "length": 2, "held_out": 0},
            "layers": {"metric": "esparse", "permutation": "none", "window": 1},
        },
    )
    assert len(pruned.layers) > 8
    assert all(report.sparsity >= 0.5 for report in pruned.layers)
    for name, parameter in model.named_parameters():
        if "self_attn" in name or "experts" in name:
            assert is_nm(parameter, Pattern(2, 4))
            assert parameter.isfinite().all()


@pytest.mark.parametrize(
    "options", [{"bins": 1}, {"amplitude": -1}, {"norm": "l1"}, {"bins": 10_001}], ids=str
)
def test_refuses_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="|".join(options)):
        ESparse(**options)  # type: ignore[arg-type]
