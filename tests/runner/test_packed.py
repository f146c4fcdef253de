"""An evaluator of a plugin measures the speed of the model as it would be served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from permllm.api import run_plan
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.registry import Registry
from permllm.runs.plan import make_plan
from permllm.sparse import cpu
from permllm.testing import check_evaluator

PLUGIN = '''\
import time

import attrs
import permllm
import torch
from permllm.components import Evaluator


@attrs.frozen
class Speed(Evaluator):
    """Tokens per second, and how far the packed model's logits are from the masked one's."""

    name = "speed"
    compares = False
    repeatable = False

    @torch.no_grad()
    def evaluate(self, model, tokenizer, context):
        tokens = torch.arange(24, device=context.device)[None]
        masked = model(tokens).logits
        with context.packed() as linears:
            began = time.perf_counter()
            logits = model(tokens).logits
            seconds = time.perf_counter() - began
        return {
            "packed": float(sum(one.runs != "dense" for one in linears)),
            "difference": float((logits - masked).abs().max()),
            "tokens_per_second": 24 / seconds,
            "restored": float(torch.equal(model(tokens).logits, masked)),
        }


@permllm.hookimpl
def permllm_evaluators():
    return [Speed]
'''

Write = Callable[..., Path]


@pytest.fixture
def pipeline(write_pipeline: Write, tmp_path: Path) -> Write:
    (tmp_path / "speed.py").write_text(PLUGIN)

    def write(**changes: object) -> Path:
        return write_pipeline("llama-gqa", plugins=["./speed.py"], evaluate=["speed"], **changes)

    return write


def test_speed_of_the_packed_model(pipeline: Write, tmp_path: Path) -> None:
    if (reason := cpu.kernel_reason(torch.float32, Pattern(2, 4))) is not None:
        pytest.skip(reason)
    layers = {"permutation": {"name": "lcp", "block": 8, "steps": 3, "batch": 2}, "window": 1}
    registry = Registry.load()
    path = pipeline(layers=layers, export=["masked", "permuted"])
    results = run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)
    dense, pruned = results["dense"].figures, results["lcp"].figures
    assert (dense["packed"], pruned["packed"]) == (0.0, 14.0)
    assert dense["difference"] == 0.0 < pruned["difference"] < 1e-4
    assert dense["restored"] == pruned["restored"] == 1.0
    assert pruned["tokens_per_second"] > 0


def test_a_pattern_without_a_kernel(pipeline: Write, tmp_path: Path) -> None:
    registry = Registry.load()
    path = pipeline(pattern="1:8", layers={"permutation": "none"})
    with pytest.raises(UserError, match=r"none of the 14 .* the CPU kernel is for .* not 1:8"):
        run_plan(make_plan(path, registry, out=tmp_path / "out"), registry)


def test_the_plugin_keeps_to_the_contract(pipeline: Write, tmp_path: Path) -> None:
    namespace: dict[str, object] = {"__name__": "speed"}
    exec(compile(PLUGIN, "speed.py", "exec"), namespace)
    check_evaluator(namespace["Speed"]())  # type: ignore[operator]
