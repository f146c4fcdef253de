"""All that touches vLLM: the quantisation method, and how its linears are made and run."""

from __future__ import annotations

from typing import Any

import torch
import vllm
from packaging.version import Version
from torch import Tensor
from torch.nn import Parameter
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.models.utils import WeightsMapper
from vllm.model_executor.parameter import ModelWeightParameter

from permllm.core.packing import pack
from permllm.formats.gathers import BUFFER
from permllm.formats.manifest import MANIFEST
from permllm.formats.packed_entry import INDICES, SCALES, VALUES, PackedEntry
from permllm.sparse import cuda
from permllm.sparse.cpu import kernel_reason
from permllm.sparse.linear import SparseLinear
from permllm_vllm import operator
from permllm_vllm.export import Export, Layout

logger = init_logger("vllm.permllm")

TRIED = "0.32"
"""The version of vLLM that the tests were run with."""

if Version(vllm.__version__).release[:2] != Version(TRIED).release:
    logger.warning("permllm-vllm was tried with vLLM %s, and this is %s", TRIED, vllm.__version__)


@register_quantization_config("permllm")
class PermllmConfig(QuantizationConfig):
    """The form of a permuted or sparse export of permllm.

    Args:
        keep_dense: hold pruned weights dense as well on the CPU, and take those for as many
            tokens at once as that is faster for.
    """

    def __init__(self, keep_dense: bool = False) -> None:
        super().__init__()
        self.keep_dense = keep_dense
        self.export: Export | None = None

    @classmethod
    def get_name(cls) -> str:
        return "permllm"

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        # Of PyTorch's semi-structured products.
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return [MANIFEST]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PermllmConfig:
        # The folder says the rest; vLLM names it next.
        return cls(bool(config.get("keep_dense", False)))

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        self.export = Export.read(model_name, revision)

    @staticmethod
    def get_checkpoint_weight_mapper() -> WeightsMapper:
        # The permutations are read before, since they belong to linears that are made one.
        return WeightsMapper(
            orig_to_new_suffix={f".{BUFFER}": None}
            | {f".weight{end}": end for end in (VALUES, INDICES, SCALES)}
        )

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        if self.export is not None:
            layouts = hf_to_vllm_mapper.apply_dict(self.export.layouts)
            self.export = Export(self.export.folder, layouts)

    def get_quant_method(self, layer: Any, prefix: str) -> LinearMethodBase | None:
        if not isinstance(layer, LinearBase) or self.export is None:
            return None
        head, _, last = prefix.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [last])
        layout = self.export.of([f"{head}.{part}" for part in parts])
        if layout.pattern is not None:
            return PackedLinearMethod(prefix, layout, self.keep_dense)
        if layout.permutation is not None:
            return DenseLinearMethod(prefix, layout)
        return UnquantizedLinearMethod()


class DenseLinearMethod(UnquantizedLinearMethod):
    """A dense product whose input is put in order first."""

    def __init__(self, prefix: str, layout: Layout) -> None:
        super().__init__()
        self.prefix, self.layout = prefix, layout

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **options: Any,
    ) -> None:
        _check_cut(self.prefix, self.layout, input_size_per_partition, input_size)
        sizes = input_size_per_partition, output_partition_sizes, input_size, output_size
        super().create_weights(layer, *sizes, params_dtype, **options)

    def process_weights_after_loading(self, layer: Any) -> None:
        _attach(layer, self.layout, layer.weight.device)
        super().process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().apply(layer, x.index_select(-1, getattr(layer, BUFFER)), bias)


@register_weight_loader_v2_supported_method
class PackedLinearMethod(LinearMethodBase):
    """A product with an N:M weight: packed on the CPU, semi-structured on CUDA, else dense.

    Args:
        prefix: the linear's name, for messages.
        layout: how its weight is stored.
        keep_dense: whether to hold it dense, too.
    """

    def __init__(self, prefix: str, layout: Layout, keep_dense: bool) -> None:
        super().__init__()
        assert layout.pattern is not None
        self.prefix, self.layout, self.pattern = prefix, layout, layout.pattern
        self.parts = ("values", "indices") + (() if layout.grid is None else ("scales",))
        self.keep_dense, self.kept, self.most = keep_dense, operator.NONE, 0
        self.dense: UnquantizedLinearMethod | None = None

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **options: Any,
    ) -> None:
        rows, channels = sum(output_partition_sizes), input_size_per_partition
        _check_cut(self.prefix, self.layout, channels, input_size)
        layer.permllm_channels, layer.permllm_dtype = channels, params_dtype

        def register(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            data = torch.empty(shape, dtype=dtype)
            parameter = ModelWeightParameter(
                data=data, input_dim=1, output_dim=0, weight_loader=options.get("weight_loader")
            )
            layer.register_parameter(name, parameter)

        if not self.layout.packed:
            register("weight", (rows, channels), params_dtype)
            return
        grid = self.layout.grid
        kind, span = (None, None) if grid is None else (grid.kind, grid.span)
        dtypes = {
            VALUES: {None: params_dtype, "int8": torch.int8, "int4": torch.uint8}[kind],
            INDICES: torch.uint8,
            SCALES: params_dtype,
        }
        entry = PackedEntry(str(self.pattern), (rows, channels), values=kind, group_size=span)
        for end, shape in entry.stored_shapes().items():
            register(end.removeprefix("."), shape, dtypes[end])

    def process_weights_after_loading(self, layer: Any) -> None:
        held = layer.values if self.layout.packed else layer.weight
        _attach(layer, self.layout, held.device)
        try:
            if self.layout.packed:
                self._sparse(layer).check()
            if held.device.type == "cuda":
                reason = self._semi_structure(layer, held)
            else:
                reason = self._pack(layer)
        except ValueError as error:
            raise ValueError(f"{self.prefix}: {error}") from error
        if reason is not None:
            logger.warning_once("permllm: pruned linears run dense: %s", reason)
            self._hold_dense(layer)
            self.dense = UnquantizedLinearMethod()
            self.dense.process_weights_after_loading(layer)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.layout.permutation is not None:
            x = x.index_select(-1, getattr(layer, BUFFER))
        if self.dense is not None:
            return self.dense.apply(layer, x, bias)
        if x.device.type == "cuda":
            return torch.nn.functional.linear(x, layer.weight, bias)
        grid = self.layout.grid
        bits, span = (0, None) if grid is None else (grid.bits, grid.span)
        scales = None if grid is None else layer.scales
        weight = layer.values, layer.indices, scales, bias, self.pattern.n, self.pattern.m
        return operator.linear(x, *weight, bits, span, self.kept, self.most)

    def _pack(self, layer: Any) -> str | None:
        """Hold the weight packed, or say why that is not faster."""
        reason = kernel_reason(layer.permllm_dtype, self.pattern)
        if reason is not None:
            return reason
        if not self.layout.packed:
            layer.values, layer.indices = pack(layer.weight.data, self.pattern)
            del layer.weight
        for name in self.parts:
            held = getattr(layer, name).data.contiguous()
            delattr(layer, name)
            setattr(layer, name, Parameter(held, requires_grad=False))
        if self.keep_dense:
            self._keep_dense(layer)
        return None

    def _keep_dense(self, layer: Any) -> None:
        """Hold the weight as vLLM holds dense ones, and find out what that is good for."""
        sparse = self._sparse(layer)
        layer.weight = Parameter(sparse.weight, requires_grad=False)
        method = UnquantizedLinearMethod()
        method.process_weights_after_loading(layer)

        def dense(x: Tensor, bias: Tensor | None) -> Tensor:
            product: Tensor = method.apply(layer, x, bias)
            return product

        def packed(x: Tensor, bias: Tensor | None) -> Tensor:
            product: Tensor = sparse(x)
            return product

        layer.permllm_dense = dense  # for as long as the linear lives
        self.kept = operator.keep(dense)
        x = torch.randn(max(operator.COUNTS), layer.permllm_channels).to(layer.permllm_dtype)
        self.most = operator.most_tokens(packed, dense, x)

    def _semi_structure(self, layer: Any, held: Tensor) -> str | None:
        """Hold the weight semi-structured, or say why that cannot be."""
        shape = (held.shape[0], layer.permllm_channels)
        device = cuda.Device.of(held.device)
        reason = cuda.semi_structured_reason(shape, layer.permllm_dtype, self.pattern, device)
        if reason is not None:
            return reason
        self._hold_dense(layer)
        try:
            weight = cuda.semi_structured(layer.weight.data, device)
        except RuntimeError as error:
            return str(error).strip().partition("\n")[0]
        layer.weight = Parameter(weight, requires_grad=False)
        return None

    def _hold_dense(self, layer: Any) -> None:
        """Hold the weight as a dense one alone."""
        if self.layout.packed:
            layer.weight = Parameter(self._sparse(layer).weight, requires_grad=False)
            for name in self.parts:
                delattr(layer, name)

    def _sparse(self, layer: Any) -> SparseLinear:
        """The weight as permllm has it, of the tensors that the layer holds."""
        grid, channels = self.layout.grid, layer.permllm_channels
        values, indices = layer.values.data, layer.indices.data
        scales = None if grid is None else layer.scales.data
        return SparseLinear(values, indices, None, self.pattern, channels, scales=scales, grid=grid)


def _check_cut(prefix: str, layout: Layout, part: int, channels: int) -> None:
    try:
        layout.check_cut(channels, part)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error


def _attach(layer: Any, layout: Layout, device: torch.device) -> None:
    if layout.permutation is not None:
        layer.register_buffer(BUFFER, layout.permutation.to(device), persistent=False)
