"""What a finished plan leaves behind: results, plots and report."""

from __future__ import annotations

from collections.abc import Callable

from permllm.files import holds, sealed
from permllm.report.plots import write_plots
from permllm.report.summary import REPORT, write_report
from permllm.results import Results
from permllm.runs import folder
from permllm.runs.plan import Plan
from permllm.runs.records import write_results


def write_outcome(results: Results, plan: Plan, progress: Callable[[str, int, int], None]) -> None:
    """Write results, plots and report; the last says that all are there.

    A study that was finished before, and is started again, draws nothing anew.

    Args:
        results: of all runs.
        plan: the runs.
        progress: is told that plots are drawn.
    """
    path, report = plan.out / folder.RESULTS, plan.out / REPORT
    if report.exists() and holds(path, sealed(results.to_dict())):
        return
    report.unlink(missing_ok=True)
    write_results(path, results)
    progress("drawing the plots", 0, 1)
    write_plots(results, plan)
    write_report(results, plan)
    progress("drawing the plots", 1, 1)
