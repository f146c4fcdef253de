"""Small linears with inputs and statistics, for tests of metrics and pruners."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from permllm.core.statistics import Statistic


@attrs.frozen(eq=False)
class ToyLinear:
    """A weight and what it reads.

    Attributes:
        what: says in messages what is special about it.
        weight: ``[C_out, C_in]``.
        inputs: ``[tokens, C_in]`` in float32.
    """

    what: str
    weight: Tensor
    inputs: Tensor

    def statistics(
        self, needs: tuple[Statistic, ...], order: tuple[int, ...] = (0, 1, 2)
    ) -> dict[str, Tensor]:
        """The sums of three batches of the inputs, added in this order."""
        batches = self.inputs.tensor_split(3)
        sums: dict[str, Tensor] = {}
        for need in needs:
            shares = [need.partial(batches[index]) for index in order]
            sums[need.name] = torch.stack(shares).sum(0)
        return sums


def toy_linears(channels: tuple[int, ...] = (8, 48)) -> Iterator[ToyLinear]:
    """Linears of several shapes, types and seeds, among them degenerate ones."""
    for seed, (rows, width) in enumerate((rows, width) for rows in (1, 6) for width in channels):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            toy = toy_linear(rows, width, seed)
            what = f"a {rows} × {width} weight in {dtype} (seed {seed})"
            yield ToyLinear(what, toy.weight.to(dtype), toy.inputs)
    toy = toy_linear(6, channels[-1], 9)
    toy.weight[2] = 0
    toy.weight[:, 1] = 0
    yield ToyLinear("a weight with a row and a column of zeros", toy.weight, toy.inputs)
    toy = toy_linear(6, channels[-1], 10)
    toy.inputs[:, [0, 3]] = 0
    yield ToyLinear("inputs with channels that never fire", toy.weight, toy.inputs)
    toy = toy_linear(6, channels[-1], 11)
    yield ToyLinear("a weight of zeros", torch.zeros_like(toy.weight), toy.inputs)


def toy_linear(rows: int, channels: int, seed: int) -> ToyLinear:
    """A random weight, and 30 random inputs whose channels differ in size and correlate."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, channels, generator=generator)
    mix = torch.randn(channels, channels, generator=generator) / channels**0.5
    scale = torch.rand(channels, generator=generator) + 0.1
    inputs = torch.randn(3 * channels, channels, generator=generator) @ mix * scale
    return ToyLinear("", weight, inputs)
