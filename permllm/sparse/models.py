"""Making the linears of a model run sparse, and saying of each how it runs and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from permllm.contexts.evaluation import LinearReport, Runs
from permllm.core.packing import pack
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.sparse import cuda
from permllm.sparse.cpu import kernel_reason
from permllm.sparse.linear import SparseLinear

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def sparsify(model: nn.Module, patterns: Mapping[str, Pattern]) -> list[LinearReport]:
    """Let the pruned linears of a model run sparse, in place, where that is faster.

    On the CPU an ``nn.Linear`` is exchanged for a :class:`SparseLinear`, which keeps the
    hooks and extra buffers of the old one; on CUDA its weight becomes a semi-structured
    tensor. The rest stays as it is.

    Args:
        model: in eval mode, its weights N:M along their stored input axis.
        patterns: by the linear's module name, or ``PARAMETER[INDEX]`` for an expert's
            slice of a 3-D parameter.

    Returns:
        a report for each of ``patterns``, in that order.

    Raises:
        ValueError: the model has no such linear.
    """
    shared = _shared_weights(model)
    return [_sparsify_one(model, name, pattern, shared) for name, pattern in patterns.items()]


@contextmanager
def packed(model: nn.Module, patterns: Mapping[str, Pattern]) -> Iterator[Sequence[LinearReport]]:
    """Let the pruned linears of a model run sparse for the block; see :func:`sparsify`.

    After it the model has its own linears again, with the very weights that they had, which
    are held meanwhile.

    Raises:
        UserError: none of the linears can run sparse.
        ValueError: the model has no such linear.
    """
    modules = {name: _find(model, name)[0] for name in patterns}
    before = [
        (name, module, module.weight)
        for name, module in modules.items()
        if isinstance(module, nn.Linear)
    ]
    try:
        reports = sparsify(model, patterns)
        if reports and all(report.runs == "dense" for report in reports):
            raise _none_packed(reports)
        yield reports
    finally:
        for name, linear, weight in before:
            linear.weight = weight
            if model.get_submodule(name) is not linear:
                model.set_submodule(name, linear)


def _none_packed(reports: Sequence[LinearReport]) -> UserError:
    """The error where every linear stays dense, with their reasons."""
    reasons = dict.fromkeys(str(report.reason) for report in reports)
    return UserError(
        f"none of the {len(reports)} pruned linears can run packed: {'; '.join(reasons)}",
        hint="`permllm generate --sparse` on an export says of each linear how it runs",
    )


def _sparsify_one(
    model: nn.Module, name: str, pattern: Pattern, shared: Mapping[int, list[str]]
) -> LinearReport:
    module, weight = _find(model, name)
    reason = _reason_of_module(name, module, weight, shared)
    if reason is not None or not isinstance(module, nn.Linear):
        return LinearReport(name, pattern, "dense", reason, weight.nbytes)
    runs: Runs = "semi-structured" if weight.device.type == "cuda" else "cpu kernel"
    if runs == "cpu kernel":
        reason, held = _pack_on_cpu(model, name, module, pattern)
    else:
        reason, held = _pack_on_cuda(module, pattern)
    if reason is not None:
        return LinearReport(name, pattern, "dense", reason, weight.nbytes)
    return LinearReport(name, pattern, runs, None, held)


def _find(model: nn.Module, name: str) -> tuple[nn.Module | None, Tensor]:
    """The module of a linear and its weight; no module for an expert's slice."""
    try:
        if name.endswith("]"):
            parameter, _, index = name[:-1].rpartition("[")
            return None, model.get_parameter(parameter)[int(index)]
        return model.get_submodule(name), model.get_parameter(f"{name}.weight")
    except (AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"the model has no linear {name!r}") from error


def _reason_of_module(
    name: str, module: nn.Module | None, weight: Tensor, shared: Mapping[int, list[str]]
) -> str | None:
    """What keeps a linear dense before its numbers are looked at."""
    if module is None:
        return "it is an expert's slice of a 3-D parameter, which the model multiplies itself"
    if type(module) is not nn.Linear:
        return f"it is a {type(module).__name__} and not an nn.Linear"
    others = [other for other in shared.get(id(weight), []) if other != f"{name}.weight"]
    if others:
        return f"its weight is also {others[0]}"
    return None


def _shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter, by its identity."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _pack_on_cpu(
    model: nn.Module, name: str, linear: nn.Linear, pattern: Pattern
) -> tuple[str | None, int]:
    """The reason that keeps a linear dense, or None; and the bytes that it holds."""
    if linear.weight.device.type != "cpu":
        return f"there is no sparse product for {linear.weight.device.type}", 0
    reason = kernel_reason(linear.weight.dtype, pattern)
    if reason is not None:
        return reason, 0
    try:
        sparse = SparseLinear.from_dense(linear, pattern)
    except ValueError as error:
        return str(error), 0
    _carry_over(linear, sparse)
    model.set_submodule(name, sparse)
    return None, sparse.held


def _carry_over(old: nn.Module, new: nn.Module) -> None:
    """Hooks and extra buffers, such as those that gather a linear's input."""
    persistent = old.state_dict(keep_vars=True)
    for key, buffer in old.named_buffers(recurse=False):
        new.register_buffer(key, buffer, persistent=key in persistent)
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    new.train(old.training)


def _pack_on_cuda(linear: nn.Linear, pattern: Pattern) -> tuple[str | None, int]:
    """As :func:`_pack_on_cpu`, by a semi-structured weight."""
    weight = linear.weight
    device = cuda.Device.of(weight.device)
    reason = cuda.semi_structured_reason(tuple(weight.shape), weight.dtype, pattern, device)
    if reason is not None:
        return reason, 0
    try:
        pack(weight.detach(), pattern)
        cuda.make_semi_structured(linear, device)
    except (ValueError, RuntimeError) as error:
        return str(error).strip().splitlines()[0], 0
    # Both libraries keep half the values and two bits for each.
    return None, weight.nbytes * 9 // 16
