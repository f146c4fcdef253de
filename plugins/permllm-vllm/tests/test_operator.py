"""The operator, as vLLM's compiler sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from permllm_vllm import operator

from permllm.core.codes import Grid, store_codes
from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.sparse.coded import coded_linear
from permllm.sparse.cpu import packed_linear

PLAIN = 2, 4, 0, None


def arguments(tokens: int) -> tuple[torch.Tensor | None, ...]:
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    weight = weight * nm_mask(weight.abs(), Pattern(2, 4))
    x = torch.randn(tokens, 32, generator=torch.Generator().manual_seed(1))
    return (x, *pack(weight, Pattern(2, 4)), None, torch.arange(24.0))


def coded(tokens: int, bits: int) -> tuple[torch.Tensor, ...]:
    x, values, indices, _, bias = arguments(tokens)
    assert x is not None
    assert values is not None
    assert indices is not None
    assert bias is not None
    codes = store_codes((values * 2).round().clamp(-7, 7).to(torch.int8), bits)
    scales = torch.rand(24, 4, generator=torch.Generator().manual_seed(2)) + 0.1
    return x, codes, indices, scales, bias


def test_it_is_the_packed_product_with_the_right_shape_beforehand() -> None:
    for tokens in (1, 5, 80):
        x, values, indices, _, bias = given = arguments(tokens)
        product = operator.linear(*given, *PLAIN, operator.NONE, 0)
        assert torch.equal(product, packed_linear(x, values, indices, bias, Pattern(2, 4)))
        on_meta = [one if one is None else one.to("meta") for one in given]
        assert operator.linear(*on_meta, *PLAIN, operator.NONE, 0).shape == product.shape
    torch.library.opcheck(operator.linear, (*arguments(5), *PLAIN, operator.NONE, 0))


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_multiplied_as_codes(bits: int) -> None:
    given, kind = coded(5, bits), (2, 4, bits, 8)
    product = operator.linear(*given, *kind, operator.NONE, 0)
    assert torch.equal(product, coded_linear(*given, Pattern(2, 4), Grid(bits, 8)))
    torch.library.opcheck(operator.linear, (*given, *kind, operator.NONE, 0))


def test_many_tokens_take_the_dense_product_that_was_kept() -> None:
    def sevens(x: torch.Tensor, bias: object) -> torch.Tensor:
        return x.new_full((len(x), 24), 7.0)

    def eights(x: torch.Tensor, bias: object) -> torch.Tensor:
        return x.new_full((len(x), 24), 8.0)

    number, other = operator.keep(sevens), operator.keep(eights)
    for tokens, dense in ((4, False), (5, True)):
        product = operator.linear(*arguments(tokens), *PLAIN, number, 4)
        assert bool((product == 7).all()) == dense
    assert (operator.linear(*arguments(5), *PLAIN, other, 4) == 8).all()
    del eights
    with pytest.raises(KeyError):
        operator.linear(*arguments(5), *PLAIN, other, 4)


def test_the_packed_product_is_taken_as_long_as_it_is_faster() -> None:
    clock = [0.0]

    def product(seconds: Callable[[int], float]) -> operator.Product:
        def call(x: torch.Tensor, bias: object) -> torch.Tensor:
            clock[0] += seconds(len(x))
            return x

        return call

    x = torch.zeros(64, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("permllm_vllm.operator.time.perf_counter", lambda: clock[0])
        dense = product(lambda tokens: 9.5)
        assert operator.most_tokens(product(lambda tokens: tokens), dense, x) == 8
        assert operator.most_tokens(product(lambda tokens: 10), dense, x) == 0
        assert operator.most_tokens(product(lambda tokens: 1), dense, x) == 64
