"""Old names work for a release, with a warning that says the new one."""

from __future__ import annotations

import importlib

import pytest

from permllm.errors import DeprecatedWarning
from permllm.testing.exporters import toy_export
from permllm.testing.models import tiny_model

MOVED = {
    "permllm.evaluators.context": ("EvaluationContext", "permllm.contexts.evaluation"),
    "permllm.runner.windows": ("Window", "permllm.contexts.window"),
    "permllm.runner.export": ("ExportContext", "permllm.contexts.export"),
    "permllm.runner.plan": ("Run", "permllm.runs.plan"),
    "permllm.runner.checkpoints": ("load_window", "permllm.runs.windows"),
}


@pytest.mark.parametrize("old", MOVED)
def test_modules_that_moved(old: str) -> None:
    name, new = MOVED[old]
    module = importlib.import_module(old)
    with pytest.warns(DeprecatedWarning, match=f"{old}.{name} is deprecated: use {new}.{name}"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(new), name)
    with pytest.raises(AttributeError, match=f"'{old}' has no attribute 'nonesuch'"):
        module.nonesuch  # noqa: B018


def test_attributes_with_another_name() -> None:
    context = toy_export(tiny_model("llama"))
    with pytest.warns(DeprecatedWarning, match="use permutations"):
        assert context.perms is context.permutations
    with pytest.warns(DeprecatedWarning, match="use permutations"):
        assert toy_export(tiny_model("llama"), perms={}).permutations == {}
