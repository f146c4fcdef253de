"""The sizes of a model, from its configuration alone.

The model is built without memory for its weights, on torch's meta device, so that
its own code says how large everything is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from permllm.errors import UserError
from permllm.models.checkpoint_files import CONFIG, tensors_in, weight_files
from permllm.models.checks import positions_of
from permllm.models.tracing import find_layers


@attrs.frozen
class ModelShape:
    """The sizes of a model.

    Attributes:
        parameters: all of them; shared ones count once.
        pruned: those of matrices in decoder layers.
        layers: decoder layers.
        hidden: width of the hidden states.
        vocabulary: tokens that it knows.
        positions: the longest sequence that it was made for; None without a limit.
        channels: ``C_in`` of every linear module in the decoder layers, by full name.
        shapes: of all parameters, by full name.
        matrices: the numbers in each matrix of the decoder layers, by name. Those of stacked
            experts count in the slices, and their stack has none.
        experts: ``C_in`` of each expert's slice, where the experts' module says how they lie.
    """

    parameters: int
    pruned: int
    layers: int
    hidden: int
    vocabulary: int
    positions: int | None
    channels: dict[str, int]
    shapes: dict[str, tuple[int, ...]] = attrs.field(factory=dict)
    matrices: dict[str, int] = attrs.field(factory=dict)
    experts: dict[str, int] = attrs.field(factory=dict)


def model_shape(config: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """The sizes of the causal language model that a configuration of transformers describes.

    Raises:
        UserError: no model can be built from it.
    """
    model = _skeleton(config, trust_remote_code)
    title, layers = find_layers(model)
    channels: dict[str, int] = {}
    experts: dict[str, int] = {}
    for index, layer in enumerate(layers):
        for name, module in layer.named_modules():
            wide = _channels(module)
            if wide is not None:
                channels[f"{title}.{index}.{name}"] = wide
            experts |= _expert_channels(f"{title}.{index}.{name}", module)
    text = config.get_text_config()
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pruned=sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() > 1),
        layers=len(layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        positions=positions_of(config),
        channels=channels,
        experts=experts,
        shapes={name: tuple(one.shape) for name, one in model.named_parameters()},
        matrices={
            name: size
            for index, layer in enumerate(layers)
            for name, size in _matrices(f"{title}.{index}", layer)
        },
    )


def check_shapes(folder: Path, shape: ModelShape) -> None:
    """Refuse weights of other shapes than the configuration beside them makes.

    Raises:
        UserError: it names the first tensor.
    """
    for name, held, _ in tensors_in(weight_files(folder)):
        if shape.shapes.get(name, held) != held:
            raise mismatched(folder, name, held, shape.shapes[name])


def mismatched(folder: Path, name: str, held: Sequence[int], made: Sequence[int]) -> UserError:
    """The error for a tensor that does not fit the configuration."""
    return UserError(
        f"'{name}' is {list(held)} in the files of '{folder}', where its {CONFIG} makes it "
        f"{list(made)}",
        hint=f"the sizes in {CONFIG} (vocab_size, hidden_size and the like) have to be those of "
        "the weights",
    )


def _matrices(title: str, layer: nn.Module) -> Iterator[tuple[str, int]]:
    """The matrices of a layer by the names of modules, bare parameters and experts' slices."""
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        full = f"{title}.{name.removesuffix('.weight')}"
        if parameter.dim() == 3:
            yield full, 0
            each = parameter.numel() // len(parameter)
            yield from ((f"{full}[{expert}]", each) for expert in range(len(parameter)))
        elif parameter.dim() > 1:
            yield full, parameter.numel()


def _skeleton(config: Any, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), warnings.catch_warnings():
            # Initial values are of no interest here, nor is what is said about them.
            warnings.simplefilter("ignore")
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        # Of sizes that do not go together, the model's own code raises whatever comes up.
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"no causal language model can be built from the configuration: {first}",
            hint="permllm prunes models that AutoModelForCausalLM of transformers opens",
        ) from error
    return model


def _channels(module: nn.Module) -> int | None:
    """``C_in`` of a linear module, None for any other."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features
    return module.weight.shape[0] if isinstance(module, Conv1D) else None


def _expert_channels(title: str, module: nn.Module) -> dict[str, int]:
    """``C_in`` of the slices of stacked experts; empty where the module does not say it."""
    transposed = getattr(module, "is_transposed", None)
    if not isinstance(transposed, bool):
        return {}
    return {
        f"{title}.{name}[{expert}]": stack.shape[1 if transposed else 2]
        for name, stack in module.named_parameters(recurse=False)
        if stack.dim() == 3
        for expert in range(len(stack))
    }
