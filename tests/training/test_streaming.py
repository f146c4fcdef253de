"""A window that is too much for the memory: one layer's weights at a time, the same gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import attrs
import pytest
import torch
from torch import Tensor

from permllm.contexts.window import Window
from permllm.core.permutations import identity
from permllm.permutations.lcp import Lcp, LearnedPermutations
from permllm.permutations.none import NoPermutation
from permllm.testing.device import simulated_device
from permllm.testing.windows import toy_window
from permllm.training.blocks import BlockedGroup, BlockedGroups, harden
from permllm.training.losses import WindowLoss
from permllm.training.steps import add_gradients


def step(window: Window, size: int) -> tuple[list[Tensor], set[frozenset[int]]]:
    """A learning step in parts of ``size`` sequences.

    Returns:
        the loss and the gradients; and of which layers pruned weights were there together.
    """
    starts = {name: identity(group.channels) for name, group in window.groups.items()}
    groups = BlockedGroups.cut(window, starts, lambda channels: 12, normalise_scores=True)
    generator = torch.Generator().manual_seed(2)
    soft = groups.blocks(
        lambda count, size: torch.rand(count, size, size, generator=generator).requires_grad_()
    )
    hard = iter(groups.of_groups(harden(soft)))
    places = {group.name: next(hard) for group in groups.groups}
    alive: dict[str, weakref.ref[Tensor]] = {}
    together: set[frozenset[int]] = set()

    def make(group: BlockedGroup, linear: str, pieces: Sequence[Tensor]) -> Tensor:
        weight = group.masked_weight(linear, pieces, places[group.name], soft_mask=False)
        alive[linear] = weakref.ref(weight)
        there = (one for one, ref in alive.items() if ref() is not None)
        together.add(frozenset(window.layer_of(one) for one in there))
        return weight

    loss = WindowLoss.of(window, "kl", "model")
    value = add_gradients(loss, groups.made(soft, make), torch.arange(4), size)
    gradients = [tensor.grad for tensor in soft.tensors]
    return [value, *(one for one in gradients if one is not None)], together


@pytest.mark.parametrize("size", [4, 2])
def test_pruned_weights_of_two_layers_are_never_there_together(size: int) -> None:
    window = toy_window()
    resident, apart = step(window, size)
    streamed, one_by_one = step(attrs.evolve(window, streamed=True), size)
    assert frozenset({0, 1}) in apart
    assert one_by_one == {frozenset({0}), frozenset({1})}
    assert len(resident) > 1
    # The gradient of parts is added up at another place.
    close = torch.equal if size == 4 else torch.allclose
    assert all(close(one, other) for one, other in zip(resident, streamed, strict=True))


@pytest.mark.parametrize("preset", [None, "paper"])
def test_a_streamed_learner_learns_the_same_to_the_bit(preset: str | None) -> None:
    window = toy_window()
    given = dict(Lcp.presets[preset]) if preset else {}
    learner = Lcp(**{**given, "block": 8, "passes": 3, "batch": 2, "start": NoPermutation()})
    resident = learner.learn(window)
    streamed = learner.learn(attrs.evolve(window, streamed=True))
    assert resident.keys() == streamed.keys()
    assert all(torch.equal(one, streamed[name]) for name, one in resident.items())


def test_a_streamed_window_keeps_nothing_of_its_linears_between_steps() -> None:
    window = attrs.evolve(toy_window(), streamed=True)
    starts = {name: identity(group.channels) for name, group in window.groups.items()}
    trainee = LearnedPermutations(Lcp(block=8), window, starts)
    (group, *_) = trainee.groups.groups
    (linear, *_) = group.weights
    assert group.weights[linear] is not group.weights[linear]
    assert torch.equal(group.scores[linear], group.scores[linear])


def test_what_enters_layers_lies_beside_the_device_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[tuple[int, ...]] = []

    class Recorded(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self) -> None:
            def pack(tensor: Tensor) -> Tensor:
                kept.append(tuple(tensor.shape))
                return tensor

            super().__init__(pack, lambda tensor: tensor)

    monkeypatch.setattr("permllm.contexts.window.save_on_cpu", Recorded)
    learner = Lcp(block=8, passes=1, batch=2, start=NoPermutation())
    with simulated_device() as device:
        window = toy_window(device=device.device)
        learner.learn(window)
        assert kept == []
        learner.learn(attrs.evolve(window, streamed=True))
    hidden = (2, window.tokens.shape[1], window.decoder.model.config.hidden_size)
    assert set(kept) == {hidden}


def test_holes_are_looked_for_after_each_layer_forth_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[None] = []
    monkeypatch.setattr("permllm.contexts.window.limit_freed_memory", lambda: looks.append(None))
    window = toy_window()
    window.targets(torch.arange(4))
    step(window, 4)
    assert looks == []
    step(attrs.evolve(window, streamed=True), 4)
    assert len(looks) == 2 * len(window.layers)
