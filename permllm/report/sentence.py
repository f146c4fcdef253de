"""What a user sees in the results, in one or two plain sentences."""

from __future__ import annotations

from permllm.report.comparison import (
    PERPLEXITY,
    Gap,
    dense_run,
    gap,
    perplexities,
    reference,
)
from permllm.report.units import number, percent
from permllm.results import Results, RunResult


def sentence(results: Results) -> str:
    """One or two sentences on the first perplexity, true whatever the figures are."""
    dense = dense_run(results)
    pruned = [run for run in results.runs if run is not dense]
    figures = perplexities(results)
    if not figures or dense is None or figures[0] not in dense.figures:
        return _on_scores(pruned)
    figure = figures[0]
    what = f"perplexity on {figure.removeprefix(PERPLEXITY)}"
    start = number(dense.figures[figure])
    measured = [run for run in pruned if figure in run.figures]
    if not measured:
        return f"The dense model has a {what} of {start}."
    gaps = {run.label: found for run in measured if (found := gap(results, run, figure))}
    if gaps:
        return _on_gaps(results, measured, gaps, what)
    best = min(measured, key=lambda run: run.figures[figure])
    if len(measured) == 1:
        end = number(best.figures[figure])
        return f"{best.label} has a {what} of {end}; the dense model has {start}."
    return (
        f"Of {len(measured)} pruned models, {best.label} has the lowest {what}: "
        f"{number(best.figures[figure])}; the dense model has {start}."
    )


def _on_gaps(results: Results, measured: list[RunResult], gaps: dict[str, Gap], what: str) -> str:
    """Of the best run that has a reference, against that reference and its rivals."""
    runs = {run.label: run for run in measured}
    best = min(gaps, key=lambda label: gaps[label].ordered)
    found = gaps[best]
    base = reference(results, runs[best])
    several = len({id(reference(results, runs[label])) for label in gaps}) > 1
    where = f" ({base.label})" if base and several else ""
    opened = (
        f"Pruned in the original channel order{where}, the {what} goes from "
        f"{number(found.dense)} to {number(found.unordered)}"
    )
    if found.closed is None:
        none = ": there is no gap to close" if found.unordered <= found.dense else ""
        return f"{opened}{none}. With {best} it is {number(found.ordered)}."
    rivals = [
        f"{label}: {percent(other.closed, 0)}"
        for label, other in gaps.items()
        if label != best and other.closed is not None and reference(results, runs[label]) is base
    ]
    beside = f" ({', '.join(rivals)})" if rivals else ""
    if found.closed > 0:
        return (
            f"{opened}. {best} brings it back to {number(found.ordered)}, which closes "
            f"{percent(found.closed, 0)} of that gap{beside}."
        )
    if found.closed == 0:
        return f"{opened}. {best} changes nothing{beside}."
    grown = f"{number(found.ordered)}, and the gap grows by {percent(-found.closed, 0)}"
    if not rivals:
        return f"{opened}. {best} does not help: with it, it is {grown}."
    return f"{opened}. No other order helped: with {best}, the best of them, it is {grown}{beside}."


def _on_scores(pruned: list[RunResult]) -> str:
    """Without perplexities, the retained scores tell the runs apart."""
    kept = [run for run in pruned if "retained" in run.figures]
    if not kept:
        return "No perplexity was measured."
    best = max(kept, key=lambda run: run.figures["retained"])
    share = percent(best.figures["retained"])
    if len(kept) == 1:
        return f"{best.label} keeps {share} of the importance scores; no perplexity was measured."
    return (
        f"Of {len(kept)} pruned models, {best.label} keeps most of the importance scores, {share}; "
        "no perplexity was measured."
    )
