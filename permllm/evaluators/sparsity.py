"""Sparsity, counted on what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import attrs
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from permllm.components import Evaluator
from permllm.contexts.cost import ComponentCost, Workload
from permllm.contexts.evaluation import EvaluationContext
from permllm.core.patterns import Pattern
from permllm.errors import RunFailed
from permllm.models.tracing import find_layers, matrix_entries


@attrs.frozen
class Sparsity(Evaluator):
    """Zeros and pattern of the pruned weights, counted on the saved tensors.

    ``sparsity`` is the share of the pruned linears' zeros in all matrices of the decoder layers,
    and ``sparsity/nm_violations`` the number of groups of M weights, in the learned order, with
    more than N that are not zero. For the dense model, zeros are counted in all its matrices
    but the embeddings.
    """

    name: ClassVar[str] = "sparsity"
    compares: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    def cost(self, workload: Workload) -> ComponentCost:
        """None to speak of: no token goes through the model."""
        return ComponentCost()

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """``{"sparsity": …, "sparsity/nm_violations": …}``; the second only if pruned.

        Raises:
            RunFailed: saved tensors are missing or cannot be read.
        """
        if context.saved is None:
            return {"sparsity": _share_of_zeros(matrices(model))}
        files = sorted(context.saved.glob("*.safetensors"))
        if not files:
            raise RunFailed(f"sparsity: there are no saved tensors in {context.saved}")
        zeros, violations = 0, 0
        for done, path in enumerate(files):
            context.progress(done, len(files))
            counts = count_window(path)
            zeros, violations = zeros + counts.zeros, violations + counts.violations
        context.progress(len(files), len(files))
        size = matrix_entries(find_layers(model)[1])
        return {"sparsity": zeros / size, "sparsity/nm_violations": float(violations)}


@attrs.frozen
class Counts:
    """Of the tensors in one file: zeros, entries, and groups of M with more than N non-zero."""

    zeros: int
    size: int
    violations: int


def count_window(path: Path) -> Counts:
    """Count on the tensors of a window file, one at a time.

    Raises:
        RunFailed: the file cannot be read.
    """
    zeros, size, violations = 0, 0, 0
    try:
        with safe_open(path, framework="pt") as file:
            for report in json.loads(file.metadata()["reports"]):
                weight = file.get_tensor(f"weight/{report['linear']}")
                permutation = file.get_tensor(f"perm/{report['group']}")
                size += weight.numel()
                zeros += int((weight == 0).sum())
                violations += nm_violations(
                    weight[:, permutation], Pattern.parse(report["pattern"])
                )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"sparsity: {path} cannot be read ({error!r})") from error
    return Counts(zeros, size, violations)


def nm_violations(weight: Tensor, pattern: Pattern) -> int:
    """How many groups of M along the last axis have more than N entries that are not zero."""
    grouped = (weight != 0).unflatten(-1, (-1, pattern.m))
    return int((grouped.sum(-1) > pattern.n).sum())


def matrices(model: nn.Module) -> list[Tensor]:
    """The parameters of two or more dimensions, without embeddings and the output layer."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    left_out = {id(module.weight) for module in [*embeddings, head] if module is not None}
    return [
        parameter
        for parameter in model.parameters()
        if parameter.dim() > 1 and id(parameter) not in left_out
    ]


def _share_of_zeros(tensors: list[Tensor]) -> float:
    size = sum(tensor.numel() for tensor in tensors)
    return sum(int((tensor == 0).sum()) for tensor in tensors) / max(1, size)
