"""As much of vLLM 0.32 as the plugin meets, on one CPU and without a model.

What is here has the names and parameters that it has there: ``test_standin.py`` compares the two
where vLLM is installed.
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import permllm_vllm
import pytest
import torch
from torch import Tensor
from torch.nn import functional

__version__ = "0.32.0"

METHODS: dict[str, type] = {}
"""Quantisation methods that were registered."""


class _VllmLogger(logging.Logger):
    said: list[str]

    def warning_once(self, msg: str, *args: Hashable, scope: str = "local") -> None:
        if msg % args not in self.said:
            self.said.append(msg % args)

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.said.append(str(msg) % args)


def init_logger(name: str) -> _VllmLogger:
    logger = _VllmLogger(name)
    logger.said = []
    return logger


class BasevLLMParameter(torch.nn.Parameter):
    def __new__(cls, data: Tensor, **kwargs: Any) -> BasevLLMParameter:
        made: BasevLLMParameter = super().__new__(cls, data, requires_grad=False)
        return made

    def __init__(self, data: Tensor, weight_loader: Callable[..., None]) -> None:
        self.weight_loader = weight_loader


class _ColumnvLLMParameter(BasevLLMParameter):
    def __init__(self, output_dim: int, **kwargs: Any) -> None:
        self.output_dim = output_dim
        super().__init__(**kwargs)


class RowvLLMParameter(BasevLLMParameter):
    def __init__(self, input_dim: int, **kwargs: Any) -> None:
        self.input_dim = input_dim
        super().__init__(**kwargs)


class ModelWeightParameter(_ColumnvLLMParameter, RowvLLMParameter):
    pass


class LinearBase(torch.nn.Module):
    pass


class QuantizeMethodBase(ABC):
    @abstractmethod
    def create_weights(self, layer: Any, *weight_args: Any, **extra_weight_attrs: Any) -> None: ...

    @abstractmethod
    def apply(self, layer: Any, *args: Any, **kwargs: Any) -> Tensor: ...

    def process_weights_after_loading(self, layer: Any) -> None:
        return


class LinearMethodBase(QuantizeMethodBase):
    @abstractmethod
    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None: ...

    @abstractmethod
    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor: ...


class UnquantizedLinearMethod(LinearMethodBase):
    def __init__(self) -> None: ...

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        weight = ModelWeightParameter(
            data=torch.empty(
                sum(output_partition_sizes), input_size_per_partition, dtype=params_dtype
            ),
            input_dim=1,
            output_dim=0,
            weight_loader=extra_weight_attrs.pop("weight_loader"),
        )
        layer.register_parameter("weight", weight)

    def process_weights_after_loading(self, layer: Any) -> None:
        # It is packed for the processor, and gone.
        layer.standin_packed = layer.weight.detach().clone()
        layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.linear(x, layer.standin_packed, bias)


def register_weight_loader_v2_supported_method(cls: type) -> type:
    return cls


@dataclass(kw_only=True)
class WeightsMapper:
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)

    def map_name(self, key: str) -> str | None:
        for prefix, new in self.orig_to_new_prefix.items():
            if key.startswith(prefix):
                if new is None:
                    return None
                key = new + key.removeprefix(prefix)
        for suffix, new in self.orig_to_new_suffix.items():
            if key.endswith(suffix):
                if new is None:
                    return None
                key = key.removesuffix(suffix) + new
        return key

    def apply_dict(self, values: dict[str, Any]) -> dict[str, Any]:
        mapped = {self.map_name(name): value for name, value in values.items()}
        return {name: value for name, value in mapped.items() if name is not None}


class QuantizationConfig(ABC):
    def __init__(self) -> None:
        self.packed_modules_mapping: dict[str, list[str]] = {}

    @abstractmethod
    def get_name(self) -> str: ...

    @abstractmethod
    def get_supported_act_dtypes(self) -> list[torch.dtype]: ...

    @classmethod
    @abstractmethod
    def get_min_capability(cls) -> int: ...

    @staticmethod
    @abstractmethod
    def get_config_filenames() -> list[str]: ...

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizationConfig: ...

    @abstractmethod
    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None: ...

    @staticmethod
    def get_checkpoint_weight_mapper() -> WeightsMapper:
        return WeightsMapper()

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        return

    def maybe_update_config(
        self, model_name: str, hf_config: Any = None, revision: str | None = None
    ) -> None:
        return


def register_quantization_config(quantization: str) -> Callable[[type], type]:
    def register(config: type) -> type:
        assert issubclass(config, QuantizationConfig)
        METHODS[quantization] = config
        return config

    return register


PLACES: dict[str, tuple[Any, ...]] = {
    "vllm": (),
    "vllm.logger": (init_logger, _VllmLogger),
    "vllm.model_executor.layers.linear": (
        LinearBase,
        LinearMethodBase,
        UnquantizedLinearMethod,
        register_weight_loader_v2_supported_method,
    ),
    "vllm.model_executor.layers.quantization": (register_quantization_config,),
    "vllm.model_executor.layers.quantization.base_config": (
        QuantizationConfig,
        QuantizeMethodBase,
    ),
    "vllm.model_executor.models.utils": (WeightsMapper,),
    "vllm.model_executor.parameter": (
        BasevLLMParameter,
        ModelWeightParameter,
        RowvLLMParameter,
        _ColumnvLLMParameter,
    ),
}
"""What each of vLLM's modules has."""


def plugin(version: str = __version__) -> Any:
    """The plugin's module ``method``, made anew for the stand-in, whether vLLM is there or not."""
    source = Path(permllm_vllm.__file__).with_name("method.py")
    spec = spec_from_file_location("method_on_standin", source)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for place, things in PLACES.items():
            made = ModuleType(place)
            vars(made).update({thing.__name__: thing for thing in things})
            patch.setitem(sys.modules, place, made)
        vars(sys.modules["vllm"])["__version__"] = version
        spec.loader.exec_module(module)
    return module
