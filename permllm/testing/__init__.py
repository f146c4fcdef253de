"""Contract tests: whether a component does what permllm relies on.

A plugin's own tests call the function for its kind of component, and
:func:`check_plugin` for the whole::

    from permllm.testing import check_metric

    def test_contract():
        check_metric(Power(exponent=3))
"""

from __future__ import annotations

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
