"""Pictures are drawn anew where something changed, and nowhere else."""

from __future__ import annotations

import attrs

from permllm.report.plots import write_plots


def test_what_is_unchanged_is_not_drawn_again(drawn, results) -> None:
    plan, written = drawn
    times = {path: path.stat().st_mtime_ns for path in written}
    made = results()
    write_plots(made, plan)
    assert {path: path.stat().st_mtime_ns for path in written} == times
    # A picture that somebody removed, and one whose run measured something else.
    written[0].unlink()
    other = attrs.evolve(made.runs[1], layers=made.runs[1].layers[:3])
    write_plots(attrs.evolve(made, runs=(made.runs[0], other, *made.runs[2:])), plan)
    changed = {path for path in written if path.stat().st_mtime_ns != times[path]}
    mine = plan.runs[0].directory / "plots" / "retained.png"
    assert {written[0], mine} <= changed
    assert plan.runs[1].directory / "plots" / "retained.png" not in changed
    assert plan.out / "plots" / "training.png" not in changed
