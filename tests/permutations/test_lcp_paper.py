"""A step of ``preset: paper`` held to the published formulae, written out here in float64.

With raw scores ``S``, weights ``W``, logits ``Z`` and a scale ``s`` per group (√B at first):

    X = clamp(s Z, -1, 1), whose gradient is that of s Z
    P̃ = Sinkhorn(exp(X / τ)), five rounds of rows and columns
    P̂ = argmax over permutations of ⟨P, P̃⟩
    M = (top-2 of every 4 of (S P)) Pᵀ forward, (softmax over every 4 of (S P)) Pᵀ backward
    W' = W ⊙ M, with P = P̂ in its value and P̃ in its gradient
    loss = 1 - mean over tokens of cos(dense, pruned) at the window's end
    AdamW with decoupled decay 0.1 at the rate 1e-3 · (1 + cos(π (t-1) / T)) / 2
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from permllm.contexts.window import Window
from permllm.permutations.lcp import Lcp, LearnedPermutations
from permllm.permutations.none import NoPermutation
from permllm.testing.windows import toy_window
from permllm.training.loop import Step, batches, train_step

STEPS = 4


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """Everything that is made in a test is in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def paper(**options: object) -> Lcp:
    small = {"block": 8, "batch": 2, "passes": 2, "start": NoPermutation()}
    return Lcp(**Lcp.presets["paper"] | small | options)


def double_window() -> Window:
    window = toy_window()
    assert window.weight(window.linears[0]).dtype == torch.float64
    return window


class Published:
    """Logits and scales of every group, their AdamW and the permutations that they give."""

    def __init__(self, window: Window, trainee: LearnedPermutations) -> None:
        self.window = window
        assert trainee.scales is not None
        groups, scales = trainee.groups, trainee.scales.by_size
        blocks = groups.of_groups(trainee.logits)
        self.names = [group.name for group in groups.groups]
        self.blocks: dict[str, list[Tensor]] = {}
        self.scales: dict[tuple[str, int], Tensor] = {}
        seen = dict.fromkeys(scales, 0)
        for group, runs in zip(groups.groups, blocks, strict=True):
            self.blocks[group.name] = [
                block.detach().clone().requires_grad_() for run in runs for block in run
            ]
            for size, _ in group.runs:
                scale = scales[size][seen[size]].detach().clone()
                self.scales[group.name, size] = scale.requires_grad_()
                seen[size] += 1
        every = [*(z for zs in self.blocks.values() for z in zs), *self.scales.values()]
        self.parameters = every
        self.means = [torch.zeros_like(p) for p in every]
        self.squares = [torch.zeros_like(p) for p in every]

    def soft(self, group: str, temperature: float) -> Tensor:
        """The block-diagonal P̃ of a group, ``[C_in, C_in]``."""
        pieces = []
        for z in self.blocks[group]:
            product = self.scales[group, len(z)] * z
            x = product + (product.clamp(-1, 1) - product).detach()
            p = torch.exp(x / temperature)
            for _ in range(5):
                p = p / p.sum(1, keepdim=True)
                p = p / p.sum(0, keepdim=True)
            pieces.append(p)
        return torch.block_diag(*pieces)

    def hard(self, soft: Tensor) -> Tensor:
        """The permutation matrix that fits best, within the blocks."""
        blocked = soft.detach().clone()
        rows, columns = linear_sum_assignment(blocked.numpy(), maximize=True)
        matrix = torch.zeros_like(soft)
        matrix[torch.from_numpy(rows), torch.from_numpy(columns)] = 1
        return matrix

    def weights(self, temperature: float) -> dict[str, Tensor]:
        weights = {}
        for name in self.names:
            soft = self.soft(name, temperature)
            p = (self.hard(soft) - soft).detach() + soft
            for linear in self.window.groups[name].linears:
                placed = self.window.scores(linear).double() @ p
                every_four = placed.view(len(placed), -1, 4)
                soft_mask = every_four.softmax(-1).view_as(placed)
                ranked = every_four.detach().sort(dim=-1, descending=True, stable=True)
                top = ranked.indices[..., :2]
                hard_mask = torch.zeros_like(every_four).scatter_(-1, top, 1.0).view_as(placed)
                hard_mask, soft_mask = hard_mask @ p.T, soft_mask @ p.T
                mask = (hard_mask - soft_mask).detach() + soft_mask
                weights[linear] = self.window.weight(linear) * mask
        return weights

    def loss(self, temperature: float, rows: Tensor) -> Tensor:
        pruned = self.window.outputs(self.weights(temperature), rows)
        dense = self.window.outputs({}, rows).detach()
        products = (pruned * dense).sum(-1)
        return 1 - (products / pruned.norm(dim=-1) / dense.norm(dim=-1)).mean()

    def step(self, number: int, rows: Tensor) -> float:
        temperature = 1.0 + (0.1 - 1.0) * (number - 1) / (STEPS - 1)
        loss = self.loss(temperature, rows)
        gradients = torch.autograd.grad(loss, self.parameters)
        rate = 1e-3 * (1 + math.cos(math.pi * (number - 1) / STEPS)) / 2
        with torch.no_grad():
            for p, g, m, v in zip(
                self.parameters, gradients, self.means, self.squares, strict=True
            ):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - rate * 0.1)
                p.sub_(rate * (m / (1 - 0.9**number)) / ((v / (1 - 0.999**number)).sqrt() + 1e-8))
        self.gradients = gradients
        return loss.item()

    def permutations(self, temperature: float) -> dict[str, Tensor]:
        return {
            name: self.hard(self.soft(name, temperature)).argmax(0).cpu() for name in self.names
        }


def flat_logits(trainee: LearnedPermutations, *, gradients: bool = False) -> Tensor:
    """All logits, or their gradients, group by group and block by block."""
    stacks = trainee.logits.map(lambda z: z.grad if gradients else z.detach())  # type: ignore[arg-type, return-value]
    runs = trainee.groups.of_groups(stacks)
    return torch.cat([block.flatten() for group in runs for run in group for block in run])


@pytest.mark.parametrize("block", [8, 12], ids=["one size", "two sizes"])
def test_steps_are_the_published_ones(block: int) -> None:
    window, learner = double_window(), paper(block=block)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    with torch.no_grad():
        for stack in trainee.logits.tensors:
            stack.mul_(3.0)  # so that some are clamped
    published, loss = Published(window, trainee), learner.window_loss(window)
    clamped = [
        (self * math.sqrt(len(self))).abs() > 1 for self in published.blocks[published.names[0]]
    ]
    assert 0 < sum(int(c.sum()) for c in clamped) < sum(c.numel() for c in clamped)
    for number, rows in enumerate(islice(batches(window, 2, fresh=False), STEPS), start=1):
        at = Step(number, STEPS)
        figures = train_step(trainee, loss, rows, at, learner.learning_rate_at(number, STEPS))
        expected = published.step(number, rows)
        assert figures["loss"] == pytest.approx(expected, rel=1e-6)
        gradients = torch.cat([g.flatten() for g in published.gradients if g.dim() == 2])
        torch.testing.assert_close(
            flat_logits(trainee, gradients=True), gradients, rtol=1e-4, atol=1e-9
        )
        values = torch.cat([z.detach().flatten() for zs in published.blocks.values() for z in zs])
        torch.testing.assert_close(flat_logits(trainee), values, rtol=1e-5, atol=1e-7)
    assert trainee.scales is not None
    ours = torch.cat([stack.detach() for stack in trainee.scales.tensors]).sort().values
    theirs = torch.stack([s.detach() for s in published.scales.values()]).sort().values
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(ours, ours.round())  # they have moved from √B
    permutations, _ = trainee.result(Step(STEPS, STEPS))
    for name, permutation in published.permutations(0.1).items():
        assert torch.equal(permutations[name], permutation), name


def test_a_whole_training_is_the_published_one() -> None:
    window, learner = double_window(), paper()
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    published = Published(window, trainee)
    for number, rows in enumerate(islice(batches(window, 2, fresh=False), STEPS), start=1):
        published.step(number, rows)
    learned = learner.learn(window)
    for name, permutation in published.permutations(0.1).items():
        assert torch.equal(learned[name], permutation), name


def test_the_first_logits_are_uniform_noise_and_the_scales_the_roots_of_the_sizes() -> None:
    window, learner = double_window(), paper(block=12)
    trainee = LearnedPermutations(learner, window, learner.start.learn(window))
    assert trainee.scales is not None
    for size, scales in trainee.scales.by_size.items():
        assert scales.tolist() == [pytest.approx(math.sqrt(size))] * len(scales)
    for stack in trainee.scaled().tensors:
        assert float(stack.detach().abs().max()) <= 1
        assert float(stack.detach().abs().max()) > 0.9
        assert float(stack.detach().mean().abs()) < 0.1
