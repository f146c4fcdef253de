"""What a finished plan leaves behind is written once, the report last."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.report import outcome
from permllm.report.outcome import write_outcome
from permllm.report.summary import REPORT
from permllm.results import Results
from permllm.runs.folder import RESULTS
from permllm.runs.records import read_results
from permllm.testing.observers import toy_plan


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Results]:
    """Grows whenever plots are asked for; none is drawn."""
    asked: list[Results] = []
    monkeypatch.setattr(outcome, "write_plots", lambda results, plan: asked.append(results))
    return asked


def test_nothing_is_drawn_anew_until_results_change_or_the_report_is_gone(
    results, pruned, drawings: list[Results], tmp_path: Path
) -> None:
    plan, stages = toy_plan(tmp_path), []

    def write(made: Results) -> int:
        write_outcome(made, plan, lambda *stage: stages.append(stage))
        assert read_results(tmp_path / RESULTS) == made
        assert (tmp_path / REPORT).exists()
        return len(drawings)

    assert [write(results()), write(results())] == [1, 1]
    assert write(results(pruned("other", 50.0))) == 2
    (tmp_path / REPORT).unlink()
    assert write(results(pruned("other", 50.0))) == 3
    assert stages == [("drawing the plots", done, 1) for done in (0, 1)] * 3


def test_a_plot_that_breaks_leaves_no_report(
    results, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = toy_plan(tmp_path)
    (tmp_path / REPORT).write_text("of before")
    monkeypatch.setattr(outcome, "write_plots", lambda results, plan: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_outcome(results(), plan, lambda *stage: None)
    assert not (tmp_path / REPORT).exists()
