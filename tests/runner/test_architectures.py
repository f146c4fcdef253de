"""Every architecture goes through a whole pipeline, and its export computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from permllm.api import run_plan
from permllm.core.patterns import Pattern, is_nm
from permllm.errors import UserError
from permllm.folding import layout
from permllm.formats.loading import load
from permllm.formats.manifest import read_manifest
from permllm.models.decoder import Decoder
from permllm.registry import Registry
from permllm.runs.plan import make_plan
from permllm.runs.windows import load_window
from permllm.testing.models import ARCHITECTURES

START = {"name": "cp", "rounds": 2, "steps": 2}
LCP = {"name": "lcp", "block": 8, "steps": 2, "batch": 2, "start": START}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_pipeline(
    architecture: str, write_pipeline: Callable[..., Path], registry: Registry, tmp_path: Path
) -> None:
    path = write_pipeline(architecture, matrix={"layers.permutation": ["none", LCP]})
    plan = make_plan(path, registry, out=tmp_path / "out")
    results = run_plan(plan, registry)

    assert [run.label for run in results.runs] == ["dense", "none", "lcp"]
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / architecture).eval()
    decoder = Decoder.trace(dense)
    tokens = torch.arange(2 * 24).reshape(2, 24) % 90
    for run in results.runs[1:]:
        window = load_window(plan.out / "runs" / run.label / "windows" / "000.safetensors")
        assert set(window.weights) == set(decoder.linears)
        for name, permutation in window.permutations.items():
            for linear in decoder.groups[name].linears:
                assert is_nm(window.weights[linear][:, permutation], Pattern(2, 4))
        with torch.no_grad():
            calls = decoder.embed(tokens)
            hidden = calls.hidden
            for layer in range(len(decoder.layers)):
                hidden = decoder.run_layer(layer, hidden, calls, window.weights)
            masked = decoder.head(hidden, tokens)
            exported = AutoModelForCausalLM.from_pretrained(plan.out / run.exports["masked"])
            reloaded = exported.eval()(input_ids=tokens).logits
        torch.testing.assert_close(masked, reloaded, rtol=1e-4, atol=1e-5)
        # At least half of what is pruned, and it did cut.
        pruned = 1 - run.figures.get("left_dense", 0.0)
        assert 0.5 * pruned <= run.figures["sparsity"] < 0.6 * pruned
        assert (pruned < 1) == bool(decoder.skipped)
        assert run.figures["sparsity/nm_violations"] == 0
        assert run.figures["fidelity/kl"] > 0


def test_every_exporter_writes_what_was_pruned(
    write_pipeline: Callable[..., Path], registry: Registry, tmp_path: Path
) -> None:
    """The runner hands over orders and patterns, and groups that stay dense have none."""
    path = write_pipeline(
        "llama-gqa",
        export=["masked", {"name": "permuted"}],
        layers={"permutation": {"name": "cp", "rounds": 2, "steps": 0}, "skip": ["*.o_proj"]},
    )
    plan = make_plan(path, registry, out=tmp_path / "out")
    run = run_plan(plan, registry).runs[1]
    manifest = read_manifest(plan.out / run.exports["permuted"])
    assert {group.pattern for group in manifest.groups} == {"2:4"}
    assert len(manifest.groups) == 6
    tokens = torch.arange(2 * 24).reshape(2, 24) % 90
    with torch.no_grad():
        masked = AutoModelForCausalLM.from_pretrained(plan.out / run.exports["masked"]).eval()
        permuted = load(plan.out / run.exports["permuted"]).model
        expected, got = masked(input_ids=tokens).logits, permuted(input_ids=tokens).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("residual", ["shared", "original"])
def test_learned_orders_can_do_without_any_gather(
    architecture: str,
    residual: str,
    write_pipeline: Callable[..., Path],
    registry: Registry,
    tmp_path: Path,
) -> None:
    path = write_pipeline(
        architecture,
        export=["masked", "permuted"],
        layers={"permutation": LCP, "foldable": True, "residual": residual},
    )
    plan = make_plan(path, registry, out=tmp_path / "out")
    run = run_plan(plan, registry).runs[1]
    assert run.exports, run
    groups = read_manifest(plan.out / run.exports["permuted"]).groups
    counts = Counter(group.order for group in groups)
    assert counts["folded"]
    assert not counts["gathered"]
    assert bool(counts["stored"]) == (residual == "original")
    tokens = torch.arange(2 * 24).reshape(2, 24) % 90
    with torch.no_grad():
        expected, got = (
            AutoModelForCausalLM.from_pretrained(plan.out / run.exports[kind])
            .eval()(input_ids=tokens)
            .logits
            for kind in ("masked", "permuted")
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "llama4", "jamba"])
def test_experts_of_a_layer_share_what_is_gathered(
    architecture: str, write_pipeline: Callable[..., Path], registry: Registry, tmp_path: Path
) -> None:
    """Also where one of them stays dense."""
    layers = {"permutation": LCP, "skip": ["*.experts.gate_up_proj[1]"]}
    path = write_pipeline(
        architecture, export=["masked", "permuted"], layers=layers, evaluate=[], name="experts"
    )
    plan = make_plan(path, registry, out=tmp_path / "out")
    run = run_plan(plan, registry).runs[1]
    assert run.exports, run
    groups = read_manifest(plan.out / run.exports["permuted"]).groups
    experts = [group for group in groups if "gate_up_proj[" in group.name]
    assert experts
    for group in experts:
        assert group.order == "gathered"
        assert group.at == (group.linears[0].partition(".gate_up_proj")[0],)
        assert group.gathers_inputs
    assert not any("gate_up_proj[1]" in linear.linear for linear in run.layers)
    assert {g.order for g in groups if ".experts.down_proj[" in g.name} == {"folded"}
    tokens = torch.arange(2 * 24).reshape(2, 24) % 90
    with torch.no_grad():
        masked = AutoModelForCausalLM.from_pretrained(plan.out / run.exports["masked"]).eval()
        permuted = load(plan.out / run.exports["permuted"]).model
        expected, got = masked(input_ids=tokens).logits, permuted(input_ids=tokens).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_orders_that_could_not_be_stored_are_refused_before_they_are_learned(
    write_pipeline: Callable[..., Path],
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Experts in one parameter that do not read one tensor have no module to gather at."""
    monkeypatch.setattr(layout, "expert_inputs", lambda decoder, index: {})
    path = write_pipeline("mixtral", export=["permuted"], layers={"permutation": "cp"}, evaluate=[])
    with pytest.raises(UserError, match=r"experts.gate_up_proj\[0\] can be neither folded"):
        run_plan(make_plan(path, registry, out=tmp_path / "refused"), registry)
    assert not list((tmp_path / "refused").glob("runs/*/windows/*"))
    for changes in ({"permutation": "none"}, {"permutation": "cp", "skip": ["*.experts"]}):
        path = write_pipeline("mixtral", export=["permuted"], layers=changes, evaluate=[])
        (run,) = run_plan(make_plan(path, registry, out=tmp_path / str(changes)), registry).runs[1:]
        assert run.exports
