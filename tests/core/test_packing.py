"""Packed weights come back bit for bit, for any N:M, and take the bytes that they should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from permllm.core.packing import index_bits, pack, packed_shapes, unpack, unpack_codes
from permllm.core.patterns import Pattern, nm_mask

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def bits_of(weight: Tensor) -> Tensor:
    return weight.view(INTEGERS[weight.dtype])


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, Pattern]:
    """N:M weights of any bits at all, some groups with fewer than N non-zeros."""
    m = draw(st.one_of(st.integers(2, 20), st.sampled_from([64, 255, 256, 257, 700])))
    pattern = Pattern(draw(st.integers(1, m - 1)), m)
    dtype = draw(st.sampled_from(list(INTEGERS)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 7)) * m)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    info = torch.iinfo(INTEGERS[dtype])
    entries = torch.randint(info.min, info.max, shape, generator=generator, dtype=torch.int64)
    kept = nm_mask(torch.rand(shape, generator=generator), pattern)
    kept &= torch.rand(shape, generator=generator) < draw(st.sampled_from([0.2, 0.9, 2.0]))
    return (entries * kept).to(INTEGERS[dtype]).view(dtype), pattern


def brute_force(weight: Tensor, pattern: Pattern) -> list[list[int]]:
    """The bytes of the indices, bit after bit."""
    rows = []
    for row in weight.tolist():
        stream = ""
        for first in range(0, len(row), pattern.m):
            group = row[first : first + pattern.m]
            places = sorted(range(pattern.m), key=lambda i: (group[i] == 0, i))[: pattern.n]
            for place in sorted(places):
                stream += f"{place:0{index_bits(pattern)}b}"[::-1]
        stream += "0" * (-len(stream) % 8)
        rows.append([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)])
    return rows


@settings(max_examples=120)
@given(weights())
def test_a_weight_comes_back_bit_for_bit(problem: tuple[Tensor, Pattern]) -> None:
    weight, pattern = problem
    values, indices = pack(weight, pattern)
    assert (values.shape, indices.shape) == packed_shapes(*weight.shape, pattern)
    assert (values.dtype, indices.dtype) == (weight.dtype, torch.uint8)
    back = unpack(values, indices, pattern, weight.shape[1])
    # A drawn entry may be a negative zero, which comes back as zero.
    assert torch.equal(bits_of(back), bits_of(weight) * (weight != 0))


@settings(max_examples=60)
@given(weights())
def test_indices_are_the_documented_bytes(problem: tuple[Tensor, Pattern]) -> None:
    weight, pattern = problem
    assert pack(weight, pattern)[1].tolist() == brute_force(weight, pattern)


def test_a_byte_of_two_to_four() -> None:
    weight = torch.tensor([[0.0, 5.0, 0.0, 7.0, 2.0, 0.0, 0.0, 3.0]])
    values, indices = pack(weight, Pattern(2, 4))
    assert values.tolist() == [[5.0, 7.0, 2.0, 3.0]]
    assert indices.tolist() == [[0b11_00_11_01]]


def test_two_to_four_in_bfloat16_takes_nine_sixteenths() -> None:
    weight = torch.rand(8, 64, dtype=torch.bfloat16)
    values, indices = pack(weight * nm_mask(weight, Pattern(2, 4)), Pattern(2, 4))
    assert (values.nbytes + indices.nbytes) / weight.nbytes == 0.5625


def test_negative_zeros_are_zeros() -> None:
    values, indices = pack(torch.tensor([[-0.0, -1.0, -0.0, -0.0]]), Pattern(2, 4))
    back = unpack(values, indices, Pattern(2, 4), 4)
    assert bits_of(back).tolist() == bits_of(torch.tensor([[0.0, -1.0, 0.0, 0.0]])).tolist()


def test_what_is_not_n_m_is_named() -> None:
    weight = torch.zeros(3, 8)
    weight[0, 2:4] = 1.0  # as many as may be
    weight[1, 4:7] = 1.0
    message = (
        "^the weight is not 2:4: 1 of 6 groups have more than 2 non-zero entries, "
        "the first in row 1, channels 4 to 7$"
    )
    with pytest.raises(ValueError, match=message):
        pack(weight, Pattern(2, 4))
    with pytest.raises(ValueError, match="4 must divide them"):
        pack(torch.zeros(2, 6), Pattern(2, 4))
    message = r"^only a matrix can be packed, not a tensor of \(2, 2, 4\)$"
    with pytest.raises(ValueError, match=message):
        pack(torch.zeros(2, 2, 4), Pattern(2, 4))


def test_misfit_indices_are_refused() -> None:
    values, indices = pack(torch.eye(8), Pattern(2, 4))
    message = (
        r"^values \(8, 4\) and indices \(8, 1\) of torch\.uint8 are not 8 channels packed as 1:4, "
        r"which are \(8, 2\) and \(8, 1\) of torch\.uint8$"
    )
    with pytest.raises(ValueError, match=message):
        unpack(values, indices, Pattern(1, 4), 8)
    with pytest.raises(ValueError, match=r"indices \(8, 1\) of torch\.int32 are not"):
        unpack(values, indices.int(), Pattern(2, 4), 8)
    with pytest.raises(ValueError, match=r"indices \(8, 2\) of torch\.uint8 are not"):
        unpack(values, indices.repeat(1, 2), Pattern(2, 4), 8)


def test_damaged_indices_are_refused() -> None:
    values, indices = pack(torch.eye(8), Pattern(2, 4))
    indices[5, 0] = 0
    message = (
        r"^places \[0, 0\] in row 5, group 0 are not ascending below 4: the indices are damaged$"
    )
    with pytest.raises(ValueError, match=message):
        unpack(values, indices, Pattern(2, 4), 8)
    values, indices = pack(torch.eye(6)[:, :3], Pattern(1, 3))
    indices[2, 0] = 3
    with pytest.raises(
        ValueError, match=r"places \[3\] in row 2, group 0 are not ascending below 3"
    ):
        unpack(values, indices, Pattern(1, 3), 3)


@pytest.mark.parametrize("places", [[0, 2, 1], [1, 0, 2], [2, 2, 3], [3, 2, 1]])
def test_every_place_of_a_group_is_above_the_one_before(places: list[int]) -> None:
    first, second, third = places
    indices = torch.tensor([[first | second << 2 | third << 4]], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"in row 0, group 0 are not ascending below 4"):
        unpack(torch.ones(1, 3), indices, Pattern(3, 4), 4)


@pytest.mark.parametrize(("m", "dtype"), [(4, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_places_take_a_byte_each_where_they_fit(m: int, dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 2 * m)
    weight[0, 1], weight[0, m + 2], weight[1, m - 1] = 1.0, 2.0, 3.0
    codes = unpack_codes(*pack(weight, Pattern(1, m)), Pattern(1, m), 2 * m)
    assert codes.dtype == dtype
    assert codes.tolist() == [[1, 2], [m - 1, 0]]


def test_everything_is_made_on_the_weights_device() -> None:
    weight = torch.eye(8)
    with torch.device("meta"):
        values, indices = pack(weight, Pattern(1, 4))
        back = unpack(values, indices, Pattern(1, 4), 8)
    assert torch.equal(back, weight)
