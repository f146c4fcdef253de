"""Permutation groups cut into blocks, for learners whose blocks have parameters of their own.

A group's channels are cut, in the order that the learner starts from, into blocks of
equal size (the last may be smaller). Whatever is learned per block, such as a ``[B, B]``
matrix, is stacked over all groups of a window by its size B, so that one batched operation
serves the whole window. :class:`Blocks` hides that there may be several sizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from permllm.core.assignment import assign_blocks
from permllm.core.block_product import block_masked_weight, run_permutation
from permllm.core.patterns import Pattern
from permllm.core.permutations import block_sizes
from permllm.core.remade import Remade
from permllm.world import ALONE, World

if TYPE_CHECKING:
    from permllm.contexts.window import Window


@attrs.frozen(eq=False)
class Blocks:
    """A tensor for every block of a window's groups.

    Attributes:
        by_size: those of all blocks of size B, stacked group by group: ``[ΣG, …]`` by B.
    """

    by_size: Mapping[int, Tensor]

    def map(self, change: Callable[..., Tensor], *others: Blocks) -> Blocks:
        """``change(mine, *theirs)`` for the blocks of each size at once."""
        return Blocks(
            {
                size: change(mine, *(other.by_size[size] for other in others))
                for size, mine in self.by_size.items()
            }
        )

    @property
    def tensors(self) -> list[Tensor]:
        """The stacks, such as for an optimiser."""
        return list(self.by_size.values())


@attrs.frozen(eq=False)
class BlockedGroup:
    """A permutation group, cut into blocks in its start order.

    Attributes:
        name: the group's name.
        pattern: its N:M.
        start: ``LongTensor[C_in]``.
        runs: ``(B, G)`` of each run of G equally large blocks: one run, or two where
            the block does not divide the channels.
        weights: per linear, ``[C_in, C_out]`` in original order; made anew when they are asked
            for in a streamed window, and so are the scores.
        scores: per linear, ``[C_in, C_out]`` in start order.
    """

    name: str
    pattern: Pattern
    start: Tensor
    runs: tuple[tuple[int, int], ...]
    weights: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]

    def masked_weight(
        self, linear: str, soft: Sequence[Tensor], hard: Sequence[Tensor], *, soft_mask: bool
    ) -> Tensor:
        """A pruned weight ``[C_out, C_in]`` under each run's soft and hard permutation."""
        return block_masked_weight(
            self.weights[linear],
            self.scores[linear],
            soft,
            hard,
            self.start,
            self.pattern,
            soft_mask=soft_mask,
        ).T

    def permutation(self, hard: list[Tensor]) -> Tensor:
        """``LongTensor[C_in]``: the group's, under each run's hard permutation."""
        return self.start.index_select(0, run_permutation(hard))


@attrs.frozen(eq=False)
class BlockedGroups:
    """All groups of a window, cut into blocks; make them with :meth:`cut`.

    Attributes:
        groups: each of them.
        streamed: whether weights are made anew when they are asked for, as in the window.
    """

    groups: tuple[BlockedGroup, ...]
    streamed: bool = False

    @classmethod
    def cut(
        cls,
        window: Window,
        starts: Mapping[str, Tensor],
        block: Callable[[int], int],
        *,
        normalise_scores: bool,
        dtype: torch.dtype | None = None,
    ) -> BlockedGroups:
        """The groups of a window, on its device.

        Args:
            window: it gives the weights and the scores.
            starts: by group the order that its blocks are cut from, ``LongTensor[C_in]``.
            block: channels per block of a group with so many channels; rounded down to a
                multiple of M.
            normalise_scores: divide each linear's scores by their mean.
            dtype: of the weights, where products are done in another than the model's; to
                round once what every step would round takes half the memory.
        """

        def weight_of(linear: str) -> Tensor:
            weight = window.weight(linear)
            return weight.to(dtype or weight.dtype).T.contiguous()

        def scores_of(linear: str, start: Tensor) -> Tensor:
            score = window.scores(linear)
            score = score / score.mean().clamp_min(1e-30) if normalise_scores else score
            score = score.to(window.weight(linear).dtype)
            return score.T.index_select(0, start).contiguous()

        groups = []
        for name, start in starts.items():
            group, pattern = window.groups[name], window.pattern(name)
            start = start.to(window.device)
            weights = window.for_each(group.linears, weight_of)
            scores = window.for_each(group.linears, partial(scores_of, start=start))
            sizes = Counter(block_sizes(group.channels, block(group.channels), pattern.m))
            groups.append(BlockedGroup(name, pattern, start, tuple(sizes.items()), weights, scores))
        return cls(tuple(groups), window.streamed)

    def blocks(self, make: Callable[[int, int], Tensor]) -> Blocks:
        """``make(count, size)`` for all ``count`` blocks of each size, on the window's device."""
        counts: Counter[int] = Counter()
        for group in self.groups:
            counts.update(dict(group.runs))
        device = self.groups[0].start.device
        return Blocks({size: make(count, size).to(device) for size, count in counts.items()})

    def per_group(self, make: Callable[[int, int], Tensor]) -> Blocks:
        """``make(groups, size)`` for the number of groups that have blocks of each size."""
        return Blocks({size: make(len(each), size) for size, each in self._counts.items()})

    def repeated(self, values: Blocks) -> Blocks:
        """What each group has, for each of its blocks: ``[groups]`` → ``[ΣG, 1, 1]``."""
        return Blocks(
            {
                size: each.repeat_interleave(
                    torch.tensor(self._counts[size], device=each.device)
                ).view(-1, 1, 1)
                for size, each in values.by_size.items()
            }
        )

    def masked_weights(
        self, soft: Blocks, hard: Blocks, *, soft_mask: bool = True
    ) -> Mapping[str, Tensor]:
        """The pruned weights ``[C_out, C_in]`` of all groups' linears.

        Args:
            soft: soft permutations ``[ΣG, B, B]``; gradients flow to them.
            hard: hard permutations, ``LongTensor[ΣG, B]``.
            soft_mask: which gradient they get, as in
                :func:`permllm.core.block_product.block_masked_weight`.
        """
        places = iter(self.of_groups(hard))
        hard_of = {group.name: next(places) for group in self.groups}

        def make(group: BlockedGroup, linear: str, pieces: Sequence[Tensor]) -> Tensor:
            return group.masked_weight(linear, pieces, hard_of[group.name], soft_mask=soft_mask)

        return self.made(soft, make)

    def made(
        self, blocks: Blocks, make: Callable[[BlockedGroup, str, Sequence[Tensor]], Tensor]
    ) -> Mapping[str, Tensor]:
        """Something of every linear, such as its pruned weight.

        Args:
            blocks: what it depends on; gradients flow to it.
            make: gives it, from the linear's group, its name, and what each run of the group's
                blocks has.

        Returns:
            by linear; made anew when it is asked for where the window is streamed.
        """
        sources: list[Tensor] = []
        where: dict[str, tuple[BlockedGroup, slice]] = {}
        for group, pieces in zip(self.groups, self.of_groups(blocks), strict=True):
            own = slice(len(sources), len(sources) + len(pieces))
            where |= dict.fromkeys(group.weights, (group, own))
            sources += pieces

        def of(linear: str, *given: Tensor) -> Tensor:
            group, own = where[linear]
            return make(group, linear, given[own])

        remade = Remade(tuple(where), of, tuple(sources))
        return remade if self.streamed else dict(remade)

    def permutations(self, hard: Blocks) -> dict[str, Tensor]:
        """The permutation of each group under hard ones of its blocks, on the CPU."""
        places = self.of_groups(hard)
        return {
            group.name: group.permutation(place).cpu()
            for group, place in zip(self.groups, places, strict=True)
        }

    def of_groups(self, blocks: Blocks) -> list[list[Tensor]]:
        """For each group what its runs of blocks have."""
        runs = {
            size: iter(stack.split(self._counts[size])) for size, stack in blocks.by_size.items()
        }
        return [[next(runs[size]) for size, _ in group.runs] for group in self.groups]

    @cached_property
    def _counts(self) -> dict[int, list[int]]:
        """By size, how many such blocks each group that has some has."""
        counts: dict[int, list[int]] = {}
        for group in self.groups:
            for size, count in group.runs:
                counts.setdefault(size, []).append(count)
        return counts


def harden(fit: Blocks, world: World = ALONE) -> Blocks:
    """The permutation that fits each block best: which channel each place takes.

    That is ``argmax over permutations P of ⟨P, fit⟩``, by linear assignment.

    Args:
        fit: ``[ΣG, B, B]``; ``fit[g, i, j]`` says how well channel ``i`` of block ``g`` fits at
            place ``j``.
        world: the processes that solve them, each some.

    Returns:
        ``LongTensor[ΣG, B]``.
    """

    def solve(each: Tensor) -> Tensor:
        if not world.many:
            return assign_blocks(each.detach()).argsort(-1)
        own = world.own(len(each))
        solved = assign_blocks(each.detach()[own.start : own.stop]).argsort(-1)
        return torch.cat(world.joined([solved.cpu()])).to(each.device)

    return fit.map(solve)
