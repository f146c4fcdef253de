"""Distillation: distances of hidden states, and their sum over the layers of a window."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from permllm_matching.distillation import DISTANCES, DistilledLoss
from torch import Tensor

from permllm.testing.windows import toy_window
from permllm.training.losses import WindowLoss


def states(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_for_equal_states_only(name: str) -> None:
    one = states(0)
    assert float(DISTANCES[name](one, one)) == pytest.approx(0, abs=1e-12)
    assert float(DISTANCES[name](one, states(1))) > 0
    assert DISTANCES[name](torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)).isfinite()


def test_squared_is_the_mean_over_tokens() -> None:
    one, two = states(0), states(1)
    tokens = [(a - b).norm() ** 2 for a, b in zip(one.view(6, 4), two.view(6, 4), strict=True)]
    torch.testing.assert_close(DISTANCES["squared"](one, two), torch.stack(tokens).mean())


def test_the_cosine_does_not_see_how_large_a_token_is() -> None:
    one, two = states(0), states(1)
    scale = torch.tensor([1.0, 10.0, 1e4]).view(1, 3, 1)
    expected = DISTANCES["cosine"](one, two)
    torch.testing.assert_close(DISTANCES["cosine"](one * scale, two), expected)
    torch.testing.assert_close(DISTANCES["cosine"](one, two * scale), expected)
    pairs = zip(one.view(6, 4), two.view(6, 4), strict=True)
    cosines = torch.stack([a @ b / a.norm() / b.norm() for a, b in pairs])
    torch.testing.assert_close(expected, 1 - cosines.mean())


def test_smooth_l1_is_half_the_square_where_states_are_near() -> None:
    one = states(0)
    near = one + 0.5 * states(1).sign()
    torch.testing.assert_close(
        DISTANCES["smooth-l1"](near, one), DISTANCES["squared"](near, one) / 2
    )


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_loss_is_the_tasks_plus_the_weighted_sum_over_layers(weight: float) -> None:
    window = toy_window()
    rows = window.learning[:2]
    linears = {name: (window.weight(name) * 0.9).requires_grad_() for name in window.linears}
    task = WindowLoss.of(window, "kl", "model")
    loss = DistilledLoss.after_layers(task, DISTANCES["squared"], weight)
    pairs = zip(window.layer_outputs(linears, rows), window.layer_targets(rows), strict=True)
    distances = [DISTANCES["squared"](pruned, dense) for pruned, dense in pairs]
    assert len(distances) == 2
    expected = task(linears, rows) + weight * (distances[0] + distances[1])
    found = loss(linears, rows)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(x.grad is not None and bool(x.grad.count_nonzero()) for x in linears.values())


def test_dense_weights_have_nothing_to_distil() -> None:
    window = toy_window()
    task = WindowLoss.of(window, "cosine", "model")
    loss = DistilledLoss.after_layers(task, DISTANCES["cosine"], 1.0)
    assert loss.held_out({}, 2) == pytest.approx(0, abs=1e-6)


def test_a_step_takes_one_pruned_and_one_dense_pass() -> None:
    window = toy_window()
    rows = window.learning[:2]
    passes = 0
    run_layer: Callable[..., Tensor] = window.decoder.run_layer

    class Counting:
        """The decoder, which counts the layers that it runs."""

        def __getattr__(self, name: str) -> object:
            return getattr(decoder, name)

        def run_layer(self, *args: object, **kwargs: object) -> Tensor:
            nonlocal passes
            passes += 1
            return run_layer(*args, **kwargs)

    decoder, window.decoder = window.decoder, Counting()  # type: ignore[assignment]
    task = WindowLoss.of(window, "kl", "model")
    loss = DistilledLoss.after_layers(task, DISTANCES["cosine"], 1.0)
    loss({}, rows)
    # The targets of these sequences are there now.
    passes = 0
    loss({}, rows)
    assert passes == 2 * len(window.layers)
