"""A linear layer that holds its N:M weight packed."""

from __future__ import annotations

from torch import Tensor, nn

from permllm.core.codes import Grid, check_codes, read_codes
from permllm.core.packing import pack, unpack, unpack_codes
from permllm.core.patterns import Pattern
from permllm.sparse.coded import coded_linear, decoded
from permllm.sparse.cpu import packed_linear


class SparseLinear(nn.Module):
    """``y = x W^T + bias`` with an N:M weight of which only the kept values are held.

    It is for inference: the weight gets no gradient, its input does. How it multiplies
    is :func:`permllm.sparse.cpu.packed_linear`'s choice at each call, or for codes
    :func:`permllm.sparse.coded.coded_linear`'s.

    Attributes:
        values: ``[C_out, C_in / M * N]``; or codes, as :mod:`permllm.core.codes` stores them.
        indices: the places of the values, as :mod:`permllm.core.packing` writes them.
        scales: ``[C_out, G]`` of the codes, in the dtype of the dense weight; or None.
        bias: ``[C_out]``, or None.
        pattern: N:M.
        grid: what values are rounded to, or None.
        in_features, out_features: C_in and C_out.
    """

    values: Tensor
    indices: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        values: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        channels: int,
        *,
        scales: Tensor | None = None,
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.pattern, self.grid = pattern, grid
        self.in_features = channels
        self.out_features = values.shape[0]
        self.register_buffer("values", values)
        self.register_buffer("indices", indices)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @classmethod
    def from_packed(
        cls,
        values: Tensor,
        indices: Tensor,
        pattern: Pattern,
        channels: int,
        bias: Tensor | None = None,
    ) -> SparseLinear:
        """Of a weight that is packed already.

        Raises:
            ValueError: the shapes do not fit one another, or the indices are damaged.
        """
        unpack_codes(values, indices, pattern, channels)
        if bias is not None and bias.shape != values.shape[:1]:
            raise ValueError(
                f"a bias of {tuple(bias.shape)} does not fit {values.shape[0]} output channels"
            )
        return cls(values.contiguous(), indices.contiguous(), bias, pattern, channels)

    @classmethod
    def from_dense(cls, linear: nn.Linear, pattern: Pattern) -> SparseLinear:
        """Of a linear layer whose weight is N:M along its stored input axis.

        Raises:
            ValueError: the weight is not N:M, or M does not divide its input channels.
        """
        values, indices = pack(linear.weight.detach(), pattern)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(values, indices, bias, pattern, linear.in_features)

    def check(self) -> None:
        """Refuse places and scales that cannot be.

        Raises:
            ValueError: they are damaged, or do not fit the values.
        """
        values = self.values
        if self.grid is not None and self.scales is not None:
            check_codes(values, self.scales, self.grid, self.in_features, self.pattern)
            kept = self.pattern.groups(self.in_features) * self.pattern.n
            values = read_codes(values, kept)
        unpack_codes(values, self.indices, self.pattern, self.in_features)

    @property
    def held(self) -> int:
        """Bytes of the packed weight."""
        scales = 0 if self.scales is None else self.scales.nbytes
        return self.values.nbytes + self.indices.nbytes + scales

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[C_out, C_in]``, unpacked at each access."""
        values = self.values
        if self.grid is not None and self.scales is not None:
            values = decoded(values, self.scales, self.grid, self.pattern, self.in_features)
        return unpack(values, self.indices, self.pattern, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C_in]`` to ``[..., C_out]``."""
        if self.grid is not None and self.scales is not None:
            return coded_linear(
                x, self.values, self.indices, self.scales, self.bias, self.pattern, self.grid
            )
        return packed_linear(x, self.values, self.indices, self.bias, self.pattern)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}"
            + ("" if self.grid is None else f", values={self.grid.kind}")
        )
