"""Contract tests: whether a component does what permllm relies on.

A plugin's own tests call the function for its kind of component, and
:func:`check_plugin` for the whole::

    from permllm.testing import check_metric

    def test_contract():
        check_metric(Power(exponent=3))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from permllm.testing.allocations import check_allocation
    from permllm.testing.datasets import check_dataset
    from permllm.testing.evaluators import check_evaluator
    from permllm.testing.exporters import check_exporter
    from permllm.testing.metrics import check_metric
    from permllm.testing.observers import check_observer
    from permllm.testing.permutations import check_permutation_learner
    from permllm.testing.pipelines import read_pipeline
    from permllm.testing.plugins import check_plugin
    from permllm.testing.pruners import check_pruner

__all__ = [
    "check_allocation",
    "check_dataset",
    "check_evaluator",
    "check_exporter",
    "check_metric",
    "check_observer",
    "check_permutation_learner",
    "check_plugin",
    "check_pruner",
    "read_pipeline",
]

_PLACES = {
    "check_allocation": "allocations",
    "check_dataset": "datasets",
    "check_evaluator": "evaluators",
    "check_exporter": "exporters",
    "check_metric": "metrics",
    "check_observer": "observers",
    "check_permutation_learner": "permutations",
    "read_pipeline": "pipelines",
    "check_plugin": "plugins",
    "check_pruner": "pruners",
}
"""The module of each."""


def __getattr__(name: str) -> Any:
    # Late: what makes exports is there where nothing can prune, too.
    if name not in _PLACES:
        raise AttributeError(f"module 'permllm.testing' has no attribute '{name}'")
    return getattr(import_module(f"permllm.testing.{_PLACES[name]}"), name)
