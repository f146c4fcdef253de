"""Finds the decoder layers, linears and permutation groups of a model.

No architecture is known by name. The layers are the largest list of modules in the
model's decoder; which linears read the same tensor is seen in a real forward pass, by
watching every matrix product with one of the layer's parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from permllm.errors import UserError
from permllm.models.linears import Group, Linear

_LINEAR = torch.nn.functional.linear

# For each product, where its input and its weight stand among the arguments, and their names.
_PRODUCTS: dict[Callable[..., Any], tuple[int, str, str]] = {
    _LINEAR: (0, "input", "weight"),
    torch.addmm: (1, "mat1", "mat2"),
    torch.baddbmm: (1, "batch1", "batch2"),
    torch.bmm: (0, "input", "mat2"),
    torch.matmul: (0, "input", "other"),
    torch.mm: (0, "input", "mat2"),
    torch.Tensor.addmm: (1, "mat1", "mat2"),
    torch.Tensor.baddbmm: (1, "batch1", "batch2"),
    torch.Tensor.bmm: (0, "input", "mat2"),
    torch.Tensor.matmul: (0, "input", "other"),
    torch.Tensor.mm: (0, "input", "mat2"),
}


def products(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """The inputs ``[..., C_in]`` and weights ``[C_out, C_in]`` of what a function multiplies.

    That is one pair for a matrix, and one for each matrix of a batch of them, such as all
    experts of a layer. Both are views of the operands. None for any other function.
    """
    if func not in _PRODUCTS:
        return []
    place, *names = _PRODUCTS[func]
    given = dict(zip(names, args[place : place + 2], strict=False)) | dict(kwargs)
    inputs, weight = (given.get(name) for name in names)
    if not isinstance(inputs, Tensor) or not isinstance(weight, Tensor):
        return []
    if weight.dim() == 2:
        return [(inputs, weight if func is _LINEAR else weight.T)]
    if weight.dim() != 3 or not 2 <= inputs.dim() <= 3:
        return []
    inputs = inputs.expand(len(weight), *inputs.shape[-2:])
    return [(one, matrix.T) for one, matrix in zip(inputs, weight, strict=True)]


class ProductWatch(TorchFunctionMode):
    """Calls ``meet(input [..., C_in], weight [C_out, C_in])`` before every product.

    ``nn.Linear``, ``Conv1D`` and experts that are slices of a 3-D parameter, multiplied one
    by one or all at once, end in one of these products. The weight is a view of the operand.
    What ``meet`` returns is the product's output; where it is None, the product is computed.
    """

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        super().__init__()
        self._meet = meet

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        pairs = products(func, args, kwargs or {})
        made = [self._meet(*pair) for pair in pairs]
        if all(output is None for output in made):
            return func(*args, **(kwargs or {}))
        # A batch of matrices is one parameter, of which all slices are met or none.
        outputs = [output for output in made if output is not None]
        return outputs[0] if len(pairs) == 1 else torch.stack(outputs)


@contextmanager
def replaced_forwards(
    layers: Sequence[nn.Module], make: Callable[[int, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Give each layer the forward that ``make(index, its own forward)`` returns."""
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for index, layer in enumerate(layers):
            kept.append((layer, layer.__dict__.get("forward")))
            layer.__dict__["forward"] = make(index, layer.forward)
        yield
    finally:
        # Backwards, since a module may stand in the list twice.
        for layer, forward in reversed(kept):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def find_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The name of the list of decoder layers, and the layers.

    It is the ``nn.ModuleList`` that has the most parameters, the outermost of those, within
    what the model calls its decoder: beside that there may be a tower for images. Layers may
    be of several classes, and share modules.

    Raises:
        UserError: there is no such list.
    """
    part = _decoder_part(model)
    best: tuple[int, str, list[nn.Module]] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not name.startswith(part):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if best is None or size > best[0]:
            best = size, name, list(module)
    if best is None or best[0] == 0:
        raise UserError(
            f"{type(model).__name__} has no list of decoder layers",
            hint="permllm prunes decoders that keep their layers in one nn.ModuleList",
        )
    return best[1], best[2]


def matrix_entries(layers: Iterable[nn.Module]) -> int:
    """How many numbers the matrices of some layers hold; those that are shared count once."""
    own = {id(p): p.numel() for layer in layers for p in layer.parameters() if p.dim() > 1}
    return sum(own.values())


def _decoder_part(model: nn.Module) -> str:
    """What the names of modules in the model's decoder begin with."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    names = [name for name, module in model.named_modules() if module is decoder and name]
    return f"{names[0]}." if names else ""


def input_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for views of one piece of memory with the same channels, while it lives."""
    rows = tensor.stride(-2) if tensor.dim() > 1 else 0
    return (
        tensor.data_ptr(),
        tensor.numel(),
        tensor.shape[-1],
        tensor.stride(-1),
        rows,
        tensor._version,
    )


@attrs.define(eq=False)
class LayerTrace:
    """What one layer did with its parameters in a forward pass.

    Attributes:
        name: the layer's name.
        index: its place among the layers.
        module: the layer.
        inputs: for every matrix that was multiplied, named by its parameter and slice,
            the keys of the tensors that it met, call by call, in order of execution.
        transposed: whether that matrix is stored as ``[C_in, C_out]``.
        partial: parameters of which only a part was multiplied at a time.
    """

    name: str
    index: int
    module: nn.Module
    inputs: dict[tuple[str, int | None], list[tuple[Any, ...]]] = attrs.field(factory=dict)
    transposed: dict[tuple[str, int | None], bool] = attrs.field(factory=dict)
    partial: set[str] = attrs.field(factory=set)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the products of the block. Inputs stay alive, so that no memory is reused."""
        alive = []
        matrices = {
            matrix.data_ptr(): (key, matrix)
            for key, matrix in parameter_matrices(dict(self.module.named_parameters()))
        }

        def watch(inputs: Tensor, weight: Tensor) -> None:
            key, matrix = matrices.get(weight.data_ptr(), (None, weight))
            if key is None:
                return
            if not (_same_layout(weight, matrix) or _same_layout(weight, matrix.T)):
                self.partial.add(key[0])
                return
            alive.append(inputs)
            self.inputs.setdefault(key, []).append(input_key(inputs))
            self.transposed[key] = not _same_layout(weight, matrix)

        with ProductWatch(watch):
            yield
        alive.clear()


def _same_layout(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride()


def parameter_matrices(
    parameters: Mapping[str, Tensor],
) -> Iterator[tuple[tuple[str, int | None], Tensor]]:
    """Every 2-D parameter and every slice of a 3-D one, by parameter name and slice."""
    for name, parameter in parameters.items():
        if parameter.dim() == 2:
            yield (name, None), parameter.detach()
        elif parameter.dim() == 3:
            for index, matrix in enumerate(parameter.detach()):
                yield (name, index), matrix


@attrs.frozen(eq=False)
class Found:
    """The linears and groups of one layer, and why others are left alone."""

    linears: dict[str, Linear]
    groups: dict[str, Group]
    skipped: dict[str, str]


def find_linears(trace: LayerTrace, shared: Mapping[int, Sequence[str]]) -> Found:
    """The linears of a layer, in order of execution, and their groups.

    Args:
        trace: what the layer did.
        shared: for the ``id`` of each parameter all of its names in the model.
    """
    parameters = dict(trace.module.named_parameters(remove_duplicate=False))
    modules = _linear_modules(trace.module)
    skipped: dict[str, str] = {}
    candidates: dict[str, Linear] = {}

    def reason(name: str, parameter: Tensor) -> str | None:
        others = [other for other in shared[id(parameter)] if other != f"{trace.name}.{name}"]
        if others:
            return f"it shares its weight with {', '.join(others)}"
        if not parameter.is_floating_point():
            return f"its weight is quantised ({parameter.dtype})"
        if name in trace.partial:
            return "only a part of its weight is multiplied at a time"
        return None

    for name, parameter in parameters.items():
        read = [key for key in trace.inputs if key[0] == name]
        module = modules.get(name)
        title = f"{trace.name}.{name if module is None else name.removesuffix('.weight')}"
        if module is None and (parameter.dim() != 3 or _is_convolution(trace.module, name)):
            if read or name in trace.partial:
                skipped[title] = "it is a bare parameter, such as a router's, and no linear module"
        elif module is not None and _routes(trace.module, name, parameter):
            skipped[title] = "it gives a number to each expert, as a router does"
        elif why := reason(name, parameter):
            skipped[title] = why
        elif module is None and not read:
            skipped[title] = "its matrices were not seen to be multiplied one by one"
        else:
            wide = parameter.shape[0] if module is None else 1
            for index in range(wide):
                key = (name, index if module is None else None)
                transposed = trace.transposed.get(key, trace.transposed[read[0]] if read else False)
                candidates.update(_linear(trace, title, parameter, key, transposed))
    return _grouped(trace, candidates, skipped)


def _linear(
    trace: LayerTrace,
    title: str,
    parameter: Tensor,
    key: tuple[str, int | None],
    transposed: bool,
) -> dict[str, Linear]:
    name, index = key
    rows, columns = parameter.shape[-2:]
    c_out, c_in = (columns, rows) if transposed else (rows, columns)
    full = title if index is None else f"{title}[{index}]"
    return {full: Linear(full, trace.index, name, index, transposed, c_out, c_in)}


def _grouped(trace: LayerTrace, linears: dict[str, Linear], skipped: dict[str, str]) -> Found:
    """Put linears that met the same tensors in one group.

    Experts that no token was routed to are grouped as their siblings are.
    """
    by_input: dict[tuple[Any, ...], list[str]] = {}
    by_key = {(linear.parameter, linear.index): name for name, linear in linears.items()}
    for key, met in trace.inputs.items():
        if key in by_key:
            by_input.setdefault(tuple(met), []).append(by_key[key])
    families: dict[str, tuple[str, ...]] = {}
    for names in by_input.values():
        templates = tuple(_template(name)[0] for name in names)
        families |= dict.fromkeys(templates, templates)
    groups = list(by_input.values())
    unseen: dict[tuple[Any, ...], list[str]] = {}
    seen = {name for names in groups for name in names}
    for name in linears:
        if name in seen:
            continue
        template, numbers = _template(name)
        if template in families:
            unseen.setdefault((families[template], numbers), []).append(name)
        else:
            skipped[name] = "it was not multiplied as a whole in a forward pass"
    groups += unseen.values()
    grouped = [_group(trace, [linears[name] for name in names]) for names in groups]
    ordered = {name: linears[name] for group in grouped for name in group.linears}
    return Found(ordered, {group.name: group for group in grouped}, skipped)


def _group(trace: LayerTrace, linears: Sequence[Linear]) -> Group:
    relative = [linear.name.removeprefix(f"{trace.name}.") for linear in linears]
    return Group(
        name=f"{trace.name}:{','.join(relative)}",
        layer=trace.index,
        linears=tuple(linear.name for linear in linears),
        channels=linears[0].c_in,
    )


def _template(name: str) -> tuple[str, tuple[str, ...]]:
    """A name with its indices taken out, and the indices: siblings share the former."""
    index = r"(?<=[.\[])\d+(?=[.\]]|$)"
    return re.sub(index, "#", name), tuple(re.findall(index, name))


def _linear_modules(layer: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of a layer by the name of their weight."""
    from transformers.pytorch_utils import Conv1D

    return {
        f"{name}.weight": module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }


def _routes(layer: nn.Module, weight: str, parameter: Tensor) -> bool:
    """Whether a linear module has one output for each of the experts that stand beside it."""
    parent = layer.get_submodule(weight.rpartition(".")[0].rpartition(".")[0])
    counts = {len(beside) for beside in parent.children() if isinstance(beside, nn.ModuleList)}
    counts |= {
        len(own)
        for beside in parent.children()
        for own in beside.parameters(recurse=False)
        if own.dim() == 3 and not isinstance(beside, nn.modules.conv._ConvNd)
    }
    return parameter.shape[0] in counts - {1}


def _is_convolution(layer: nn.Module, parameter: str) -> bool:
    owner = layer.get_submodule(parameter.rpartition(".")[0])
    return isinstance(owner, nn.modules.conv._ConvNd)


def parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter, by its ``id``."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def check_order(calls: Sequence[int], names: Sequence[str]) -> None:
    """Refuse a model whose forward pass does not call each layer once, in order.

    Raises:
        UserError: it names the first layer that is out of line.
    """
    if list(calls) == list(range(len(names))):
        return
    counts = Counter(calls)
    for index, name in enumerate(names):
        if counts[index] != 1:
            raise UserError(f"{name} runs {counts[index]} times in a forward pass, not once")
    raise UserError(f"the layers from {names[0]} on do not run in their order")
