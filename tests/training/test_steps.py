"""A step in parts is the step: for every loss, and whatever makes the weights."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.contexts.window import Window
from permllm.permutations.lcp import Lcp, LearnedPermutations
from permllm.testing.windows import toy_window
from permllm.training.loop import Step, train_step
from permllm.training.losses import LOSSES, WindowLoss
from permllm.training.steps import Parts, add_gradients, all_finite
from permllm.world import World

WANTED = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes."


def double_window(layers: range) -> Window:
    """A window whose products are done in float64."""
    window = toy_window(layers=layers, sequences=8, length=6)
    window.decoder.model.double()
    if window.pruned_inputs is not None:
        window.pruned_inputs = window.pruned_inputs.double()
        window.dense_inputs = window.pruned_inputs
    return window


def scaled_weights(window: Window, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: window.weight(name).detach() * scale for name, scale in scales.items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=5)
@given(
    sequences=st.integers(1, 8), size=st.integers(1, 8), layers=st.sampled_from([(0, 2), (1, 2)])
)
def test_the_gradient_of_parts_is_that_of_the_whole(
    loss: str, recompute: bool, sequences: int, size: int, layers: tuple[int, int]
) -> None:
    window = double_window(range(*layers))
    of_window = WindowLoss.of(window, loss, "model", recompute=recompute)
    rows = torch.randperm(8)[:sequences]
    found = []
    for at_once in (None, size):
        scales = {
            name: torch.full((), 0.9, dtype=torch.float64, requires_grad=True)
            for name in window.linears
        }
        if at_once is None:
            value = of_window(scaled_weights(window, scales), rows)
            value.backward()
        else:
            value = add_gradients(of_window, scaled_weights(window, scales), rows, at_once)
        found.append(torch.stack([value.detach(), *(scale.grad for scale in scales.values())]))
    assert found[0].dtype == torch.float64
    # The losses of cosine and next-token are in float32, whose rounding remains.
    exact = loss == "kl"
    assert torch.allclose(*found, rtol=1e-9 if exact else 2e-4, atol=1e-12 if exact else 1e-6)


@pytest.mark.parametrize("streamed", [False, True])
@settings(max_examples=5)
@given(sequences=st.integers(1, 8), shards=st.integers(1, 9))
def test_the_step_of_shards_is_that_of_the_whole(
    streamed: bool, sequences: int, shards: int
) -> None:
    found = []
    for count in (1, shards):
        window = attrs.evolve(double_window(range(2)), world=World(shards=count), streamed=streamed)
        starts = {name: torch.arange(group.channels) for name, group in window.groups.items()}
        options = Lcp(block=4, loss="kl", precision="model", optimiser="adam")
        trainee = LearnedPermutations(options, window, starts)
        trainee.logits = trainee.logits.map(lambda one: one.detach().double().requires_grad_())
        trainee.optimiser = torch.optim.SGD(trainee.logits.tensors, lr=1.0)
        before = [one.detach().clone() for one in trainee.logits.tensors]
        figures = train_step(
            trainee,
            options.window_loss(window),
            torch.arange(sequences),
            Step(1, 2),
            1.0,
            world=window.world,
        )
        moved = [
            (one.detach() - then).flatten()
            for one, then in zip(trainee.logits.tensors, before, strict=True)
        ]
        found.append(torch.cat([*moved, torch.tensor([figures["loss"]])]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-10)


def test_a_whole_step_is_what_autograd_gives_bit_by_bit() -> None:
    window = toy_window()
    loss = WindowLoss.of(window, "kl", "model")
    found = []
    for add in (False, True):
        scales = {name: torch.full((), 0.9, requires_grad=True) for name in window.linears}
        weights = scaled_weights(window, scales)
        if add:
            add_gradients(loss, weights, torch.arange(4), 4)
        else:
            loss(weights, torch.arange(4)).backward()
        found.append(torch.stack([scale.grad for scale in scales.values()]))
    assert torch.equal(*found)


def test_weights_without_gradient_take_part_and_unused_ones_get_none() -> None:
    used, unused = (torch.tensor(2.0, requires_grad=True) for _ in range(2))
    fixed = torch.tensor(3.0)
    weights = {"used": used * 1, "unused": unused * 1, "fixed": fixed}

    def loss(given: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        return given["used"] * given["fixed"] * rows.double().mean()

    value = add_gradients(loss, weights, torch.tensor([1, 2, 6]), 2)
    assert value.item() == pytest.approx(2 * 3 * 3)
    assert used.grad == pytest.approx(9.0)
    assert unused.grad is None
    assert fixed.grad is None


def test_what_a_loss_takes_from_the_parameters_directly_is_added_up_too() -> None:
    parameter = torch.tensor(2.0, requires_grad=True)
    add_gradients(lambda weights, rows: parameter * rows.double().mean(), {}, torch.arange(5), 2)
    assert parameter.grad == pytest.approx(2.0)


class Room:
    """Work that has room for so many sequences."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most, self.error, self.asked = most, error or RuntimeError(WANTED), []

    def __call__(self, size: int) -> int:
        self.asked.append(size)
        if size > self.most:
            raise self.error
        return size


def test_sequences_are_halved_until_they_fit_and_that_is_remembered_and_said_once() -> None:
    warnings: list[str] = []
    parts, room = Parts(warnings.append), Room(2)
    assert [parts.fitting(7, room), parts.fitting(7, room), parts.fitting(1, room)] == [2, 2, 1]
    assert room.asked == [7, 4, 2, 2, 1]
    room.most = 1
    assert parts.fitting(7, room) == 1
    assert warnings == [
        "7 sequences at once do not fit into memory (3.0 GiB were asked for); a learning step adds "
        "up the gradients of parts of 2, which is the same step up to rounding"
    ]


def test_what_fits_at_once_is_done_at_once() -> None:
    warnings: list[str] = []
    parts, room = Parts(warnings.append), Room(8)
    assert [parts.fitting(8, room), parts.fitting(3, room)] == [8, 3]
    assert (warnings, parts.most) == ([], None)


def test_one_sequence_that_does_not_fit_is_an_error() -> None:
    parts, room = Parts(lambda message: None), Room(0)
    with pytest.raises(RuntimeError, match="can't allocate"):
        parts.fitting(4, room)
    assert room.asked == [4, 2, 1]


def test_other_errors_are_not_tried_again() -> None:
    parts, room = Parts(lambda message: None), Room(2, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        parts.fitting(4, room)
    assert room.asked == [4]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found(bad: float) -> None:
    good = torch.ones(3, requires_grad=True)
    good.grad = torch.full((3,), 1e38)
    without = torch.ones(3, requires_grad=True)
    assert all_finite(torch.tensor(1.0), [good, without])
    assert not all_finite(torch.tensor(bad), [good])
    other = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    other.grad = torch.tensor([1.0, bad], dtype=torch.bfloat16)
    assert not all_finite(torch.tensor(1.0), [good, other])


LIMITED = """\
import resource, attrs, psutil, torch
from permllm.pruners.distil import Distil
from permllm.testing.windows import toy_window

torch.set_num_threads(1)
found = []
for limited in (True, False):
    window = toy_window(sequences=600, length=64)
    window.sequences = attrs.evolve(window.sequences, calibration=600)
    window.targets(torch.arange(602))
    window.on_warning = print
    weights = {}
    for linear in window.linears:
        chance = torch.rand(window.weight(linear).shape, generator=torch.Generator().manual_seed(1))
        weights[linear] = window.weight(linear).detach() * (chance < 0.5)
    pruner = Distil(steps=2, batch=512, select="last", precision="model")
    if limited:
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, resource.RLIM_INFINITY))
    found.append((pruner.update(window, weights), weights))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
(one, before), (other, _) = found
print(all(torch.allclose(one[name], other[name], atol=1e-5) for name in one))
print(any(not torch.allclose(one[name], before[name], atol=1e-5) for name in one))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_process_with_little_memory_learns_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    warning, same, moved = done.stdout.splitlines()
    assert warning.startswith("layers 0 to 1: 512 sequences at once do not fit into memory (")
    assert (same, moved) == ("True", "True")
