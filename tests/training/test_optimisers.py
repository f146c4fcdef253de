"""Adam with a second moment that a block shares in part."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.training.optimisers import BlockAdam


def steps(optimiser: type, gradients: torch.Tensor, **options: object) -> torch.Tensor:
    parameter = torch.zeros_like(gradients[0]).requires_grad_()
    chosen = optimiser([parameter], lr=0.1, **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        chosen.step()
    return parameter.detach()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_equals_adam_where_all_gradients_of_a_block_are_equally_large(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, 2, 3, 3), generator=generator, dtype=torch.float64) * 2 - 1
    sizes = torch.rand(n, 2, 1, 1, generator=generator, dtype=torch.float64) + 0.1
    moved = steps(BlockAdam, signs * sizes, betas=(0.9, 0.95), opening=0)
    expected = steps(torch.optim.Adam, signs * sizes, betas=(0.9, 0.95), eps=0)
    torch.testing.assert_close(moved, expected)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-12, 1e6))
def test_the_scale_of_the_gradients_does_not_matter(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64)
    moved, same = steps(BlockAdam, gradients), steps(BlockAdam, gradients * scale)
    torch.testing.assert_close(moved, same)


def test_what_matters_more_moves_further() -> None:
    gradient = torch.tensor([[[1.0, 0.1], [0.01, 0.0]]], dtype=torch.float64)
    moved = -steps(BlockAdam, gradient[None].expand(3, -1, -1, -1), opening=0)
    first, second, third, fourth = moved.flatten().tolist()
    assert first > second > third > fourth == 0
    assert first < 3 * 0.1 * 2**0.5


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_the_first_step_goes_along_the_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64) ** 3
    moved = steps(BlockAdam, gradient[None])
    torch.testing.assert_close(moved, -0.1 * gradient / gradient.square().mean().sqrt())


def test_after_its_opening_only_blocks_share() -> None:
    """From then on one block's gradients say nothing to another's steps."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64)
    louder = gradients.clone()
    louder[:, 1] *= 100
    moves = [steps(BlockAdam, given, opening=2)[0] for given in (gradients, louder)]
    late = [
        steps(BlockAdam, given[:n], opening=2)[0] for given in (gradients, louder) for n in (5, 6)
    ]
    torch.testing.assert_close(late[1] - late[0], late[3] - late[2])
    assert not torch.allclose(moves[0], moves[1])


def test_the_opening_is_eight_steps_unless_it_is_given() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(10, 2, 3, 3, generator=generator, dtype=torch.float64)
    default, eight, nine = (
        steps(BlockAdam, gradients, **options) for options in ({}, {"opening": 8}, {"opening": 9})
    )
    assert torch.equal(default, eight)
    assert not torch.allclose(default, nine)
