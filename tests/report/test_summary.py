"""``report.md``: table, pictures, pipeline and versions."""

from __future__ import annotations

import math
from pathlib import Path

import attrs

from permllm.report.plots import (
    write_plots,
)
from permllm.report.summary import write_report
from permllm.testing.observers import toy_plan


def test_study_with_failures_is_drawn_and_reported(study, tmp_path: Path, plan_of) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, None], lcp=[math.inf, 1e9])
    plan = plan_of(made, tmp_path)
    written = write_plots(made, plan)
    assert not [path for path in written if path.parents[1] == plan.runs[3].directory]
    text = write_report(made, plan).read_text(encoding="utf-8")
    assert "| cp, #2 failed: ArithmeticError: not today | 1 of 2 |" in text
    assert "## Failed runs\n\n- cp #2: ArithmeticError: not today\n" in text
    assert "repeats, which differ in their seeds" in text


def test_report_shows_table_pictures_pipeline_and_versions(
    results, tmp_path: Path, plan_of
) -> None:
    made = results()
    exported = attrs.evolve(made.runs[-1], exports={"masked": "runs/lcp/exports/masked"})
    made = attrs.evolve(made, runs=(*made.runs[:-1], exported))
    plan = plan_of(made, tmp_path)
    (tmp_path / "environment.json").write_text(
        '{"versions": {"torch": "2.4.0"}, "python": "3.11.1", "model_fingerprint": "abc"}'
    )
    write_plots(made, plan)
    text = write_report(made, plan).read_text(encoding="utf-8")
    assert text.startswith("# quickstart\n\nPruned in the original channel order")
    assert "| lcp | 40.00 | 75.0 % |" in text
    for name in ("perplexity", "retained", "training"):
        assert f"](plots/{name}.png)" in text
    assert "```yaml\npermllm: 1\nname: toy\n" in text
    assert "- torch 2.4.0" in text
    assert "model fingerprint: abc" in text
    assert 'from_pretrained("runs/x/runs/lcp/exports/masked")' in text


def test_report_without_anything_else(results, tmp_path: Path) -> None:
    text = write_report(results(), toy_plan(tmp_path)).read_text(encoding="utf-8")
    assert "![" not in text
    assert "## Versions" not in text
    assert "## Exported models" not in text
