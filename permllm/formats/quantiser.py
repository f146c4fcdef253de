"""Exports in stock transformers: the quantiser by which ``from_pretrained`` opens them.

The ``config.json`` of an export that transformers alone cannot open names the quantiser, and in
which file its weights are; ``permllm.json`` beside it says the rest. Importing permllm registers
the quantiser as soon as transformers looks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import cached_file, logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from permllm.contexts.evaluation import LinearReport
from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.formats.export_files import METHOD
from permllm.formats.gathers import BUFFER
from permllm.formats.loading import attach_gathers_of, patterns_of, running_sparse
from permllm.formats.manifest import MANIFEST, Manifest, read_manifest
from permllm.formats.packed import unpacked
from permllm.formats.packed_entry import INDICES, SCALES, VALUES, PackedEntry
from permllm.formats.packed_linears import hold_packed
from permllm.sparse.linear import SparseLinear

logger = logging.get_logger(__name__)


@register_quantization_config(METHOD)
class PermllmConfig(QuantizationConfigMixin):
    """What ``config.json`` says of an export.

    Attributes:
        weights: the name of the file with the weights, or of the index of several.
    """

    def __init__(self, weights: str, **_: Any) -> None:
        self.quant_method = METHOD
        self.weights = weights


@register_quantizer(METHOD)
class PermllmQuantizer(HfQuantizer):
    """Opens exports whose weights are packed, or whose inputs are gathered.

    Weights that run packed stay packed while they are read. The others are unpacked, and on CUDA
    become semi-structured where that is faster.

    Attributes:
        linears: how each pruned linear runs, once the model is loaded.
    """

    linears: Sequence[LinearReport] = ()
    is_trainable: ClassVar[bool] = False

    def __init__(self, quantization_config: PermllmConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        if not self.pre_quantized:
            raise UserError(
                "transformers cannot prune a model to N:M by its quantization_config",
                hint="`permllm run` does, and exports a folder that from_pretrained opens",
            )
        self.manifest: Manifest | None = None
        self.unpacked: dict[str, PackedEntry] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the file: of all that transformers calls, this comes before it looks for one."""
        config.transformers_weights = self.quantization_config.weights
        return config

    # What transformers 5.0 calls in its stead.
    update_tp_plan = update_attn_implementation

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        manifest = self.manifest = _manifest_of(model, options.get("checkpoint_files"))
        devices = options.get("device_map") or {"": "cpu"}
        on_cpu = {torch.device(place).type for place in devices.values()} == {"cpu"}
        self.unpacked = hold_packed(model, manifest.packed) if on_cpu else manifest.packed
        self.dtypes = {name: model.get_parameter(name).dtype for name in self.unpacked}
        # To the linears that stand there now.
        attach_gathers_of(model, manifest)

    def get_weight_conversions(self) -> list[Any]:
        """How the names of the files become those of the model."""
        # Names are changed first, also those that a converter then looks for.
        renamed = [WeightRenaming(f".weight{end}", end) for end in (VALUES, INDICES, SCALES)]
        whole = [
            WeightConverter(
                [f"^{name.removesuffix('.weight')}{end}" for end in entry.ends],
                name,
                [_Unpack(entry, self.dtypes[name])],
            )
            for name, entry in self.unpacked.items()
        ]
        return [*renamed, *whole]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        assert self.manifest is not None
        for name, module in model.named_modules():
            order = getattr(module, BUFFER, None)
            if isinstance(order, Tensor) and not is_permutation(order.cpu()):
                raise UserError(f"'{name}.{BUFFER}' is no permutation: the export is damaged")
        self.linears = running_sparse(model, patterns_of(self.manifest))

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        assert self.manifest is not None
        if self.manifest.gathers:
            raise UserError(
                "some inputs of this model are put in order at run time, so that it cannot be "
                "saved as an ordinary one",
                hint="export the run as masked, whose weights are in the original order",
            )
        for name, module in list(model.named_modules()):
            if isinstance(module, SparseLinear):
                model.set_submodule(name, _dense(module, dtype))
        return model

    def is_serializable(self) -> bool:
        """No: transformers would name the files so that it opens them without permllm, too."""
        logger.warning(
            "an export of permllm is not saved again: copy its folder, or call "
            "model.dequantize() first for an ordinary model"
        )
        return False


class _Unpack(ConversionOps):
    """Makes a weight of its values and their places, in the type that the model has it in."""

    def __init__(self, entry: PackedEntry, dtype: torch.dtype) -> None:
        self.entry, self.dtype = entry, dtype

    def convert(
        self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", **__: Any
    ) -> dict[str, Tensor]:
        parts = {
            f".{name.rpartition('.')[2]}": tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in input_dict.items()
        }
        return {full_layer_name: unpacked(full_layer_name, self.entry, parts).to(self.dtype)}


def _manifest_of(model: Any, files: Sequence[str] | None) -> Manifest:
    """The manifest beside the files of a model, fetched where they come from the hub."""
    if not files:
        raise UserError("an export of permllm is opened from its files, not from a state_dict")
    folder = Path(files[0]).parent
    if not (folder / MANIFEST).is_file():
        commit = getattr(model.config, "_commit_hash", None)
        found = cached_file(model.config.name_or_path, MANIFEST, revision=commit)
        folder = Path(found).parent
    return read_manifest(folder)


def _dense(sparse: SparseLinear, dtype: torch.dtype | None) -> nn.Linear:
    linear = nn.Linear(sparse.in_features, sparse.out_features, sparse.bias is not None, "meta")
    linear.weight = nn.Parameter(sparse.weight.to(dtype))
    if sparse.bias is not None:
        linear.bias = nn.Parameter(sparse.bias.to(dtype))
    return linear
