"""What a component takes, as far as it can say beforehand."""

from __future__ import annotations

import attrs


@attrs.frozen
class Workload:
    """What a component will be given in a run.

    Attributes:
        sequences: calibration sequences.
        length: tokens of each.
        groups: permutation groups of the whole model, about.
        linears: ``C_out, C_in`` of each linear that is pruned; for a pruner its own.
        window: the share of the model's layers that a window has.
    """

    sequences: int
    length: int
    groups: int
    linears: tuple[tuple[int, int], ...] = ()
    window: float = 1.0


@attrs.frozen
class ComponentCost:
    """What a component takes in a run; costs of several add up.

    Attributes:
        trained: sequences that it sends forward and backward through the model, repeated ones
            counted again; 0 where a time ends the training.
        batch: sequences of a training step; 0 for what does not train.
        tokens: that it sends forward through the model, beside the calibration's.
        longest: tokens of its longest sequence.
        search_seconds: of searches on one core; runs with the same search share them.
        seconds: that it takes in every run, or is given to train.
        operations: floating-point operations beside those of tokens.
        bytes: of memory that it holds at once, beside weights, scores, statistics and what a
            training holds.
        gradients: bytes that several processes add up in each of its training steps.
    """

    trained: int = 0
    batch: int = 0
    tokens: int = 0
    longest: int = 0
    search_seconds: float = 0.0
    seconds: float = 0.0
    operations: float = 0.0
    bytes: int = 0
    gradients: int = 0

    def __add__(self, other: ComponentCost) -> ComponentCost:
        """Both, one after the other."""
        return ComponentCost(
            trained=self.trained + other.trained,
            batch=max(self.batch, other.batch),
            tokens=self.tokens + other.tokens,
            longest=max(self.longest, other.longest),
            search_seconds=self.search_seconds + other.search_seconds,
            seconds=self.seconds + other.seconds,
            operations=self.operations + other.operations,
            bytes=max(self.bytes, other.bytes),
            gradients=max(self.gradients, other.gradients),
        )
