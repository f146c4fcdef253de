"""Results: to plain data and back, looked up by label."""

from __future__ import annotations

import json

import pytest

from permllm.results import LayerReport, Results, RunResult

REPORT = LayerReport("layers.0.up", "layers.0:up", (4, 8), "2:4", 0.7, 0.8, 0.5, 0.1)


def results() -> Results:
    dense = RunResult("dense", {"perplexity/x": 16.0}, 0.0, 100)
    cp = RunResult(
        "cp #2", {"perplexity/x": 60.0}, 3.0, 200, {"masked": "runs/cp"}, (REPORT,),
        {"layers.permutation": "cp"}, "cp", 1,
    )  # fmt: skip
    broken = RunResult("lcp", {}, 0.0, 0, error="the loss is nan")
    return Results("study", "runs/study", (dense, cp, broken))


def test_json_comes_back_equal() -> None:
    assert Results.from_dict(json.loads(json.dumps(results().to_dict()))) == results()


def test_layers_can_be_left_out() -> None:
    plain = results().to_dict(layers=False)
    assert all("layers" not in run for run in plain["runs"])
    assert Results.from_dict(plain).runs[1].layers == ()


def test_runs_are_found_by_label() -> None:
    assert results()["cp #2"].repeat == 1
    with pytest.raises(KeyError, match=r"no run 'greedy'; there are \['dense', 'cp #2', 'lcp'\]"):
        results()["greedy"]


def test_what_broke_is_counted() -> None:
    assert [run.label for run in results().failed] == ["lcp"]


def test_a_setting_is_the_label_unless_it_repeats() -> None:
    assert RunResult("lcp", {}, 0.0, 0).setting == "lcp"
    assert results()["cp #2"].setting == "cp"


def test_results_show_themselves() -> None:
    dense = RunResult("dense", {"perplexity/x": 20.0}, 0.0, 2**30)
    pruned = RunResult("a <b>", {"perplexity/x": 40.0}, 1.0, 2**30)
    results = Results("toy", "out", (dense, pruned))
    head, _, first, second = results.table().splitlines()
    assert head == "| method | perplexity x | gap closed | time | peak memory |"
    assert first.startswith("| dense | 20.00 |")
    shown = results._repr_html_()
    assert "<td>a &lt;b&gt;</td><td>40.00</td>" in shown
    assert "the dense model has 20.00" in shown
    assert second.startswith("| a <b> | 40.00 |")
