"""What a user sees in the results, in one or two plain sentences."""

from __future__ import annotations

from permllm.comparing.comparison import (
    PERPLEXITY,
    Gaps,
    gaps,
    perplexities,
    rival,
)
from permllm.comparing.repeats import Setting, Spread, repeated, settings
from permllm.measured import DENSE, Measured
from permllm.units import number, percent, with_deviation


def sentence(results: Measured) -> str:
    """A few sentences on the first perplexity, true whatever the figures are.

    Runs that failed are counted and otherwise left out. The figures of repeated runs are
    means, with standard deviations.
    """
    finished = [setting for setting in settings(results) if setting.runs]
    dense = next((setting for setting in finished if setting.label == DENSE), None)
    pruned = [setting for setting in finished if setting is not dense]
    text = _on_runs(results, dense, pruned)
    if repeated(results) and pruned:
        text += f" {_on_repeats(pruned)}"
    failed = sum(run.error is not None for run in results.runs)
    if failed:
        counted = "1 run failed and counts" if failed == 1 else f"{failed} runs failed and count"
        text += f" {counted} for nothing."
    return text


def _on_runs(results: Measured, dense: Setting | None, pruned: list[Setting]) -> str:
    figures = perplexities(results)
    start = dense.spread(figures[0]) if figures and dense else None
    if start is None:
        return _on_scores(pruned)
    figure = figures[0]
    what = f"perplexity on {figure.removeprefix(PERPLEXITY)}"
    measured = {setting.label: spread for setting in pruned if (spread := setting.spread(figure))}
    if not measured:
        return f"The dense model has a {what} of {number(start.mean)}."
    opened = {setting.label: gap for setting in pruned if (gap := gaps(results, setting, figure))}
    if opened:
        return _on_gaps(results, pruned, opened, what)
    best = min(measured, key=lambda label: measured[label].mean)
    end = _shown(measured[best])
    if len(measured) == 1:
        return f"{best} has a {what} of {end}; the dense model has {number(start.mean)}."
    return (
        f"Of {len(measured)} pruned models, {best} has the lowest {what}: "
        f"{end}; the dense model has {number(start.mean)}."
    )


def _on_gaps(results: Measured, pruned: list[Setting], opened: dict[str, Gaps], what: str) -> str:
    """Of the best setting that has a reference, against that reference and its rivals."""
    bases = {
        setting.label: base
        for setting in pruned
        if setting.label in opened and (base := rival(results, setting))
    }
    best = min(opened, key=lambda label: opened[label].ordered.mean)
    gaps = opened[best]
    base = bases[best]
    where = f" ({base.label})" if len({other.label for other in bases.values()}) > 1 else ""
    unordered = base.spread(gaps.each[0].figure) or gaps.unordered
    start = (
        f"Pruned in the original channel order{where}, the {what} goes from "
        f"{number(gaps.dense)} to {_shown(unordered)}"
    )
    if gaps.closed is None:
        none = ": there is no gap to close" if gaps.unordered.mean <= gaps.dense else ""
        return f"{start}{none}. With {best} it is {_shown(gaps.ordered)}."
    rivals = {
        label: other.closed.mean
        for label, other in opened.items()
        if label != best and other.closed is not None and bases[label] == base
    }
    return f"{start}. {_on_the_best(best, gaps, gaps.closed.mean, rivals)}"


def _on_the_best(best: str, gaps: Gaps, closed: float, rivals: dict[str, float]) -> str:
    listing = ", ".join(f"{label}: {percent(share, 0)}" for label, share in rivals.items())
    beside = f" ({listing})" if rivals else ""
    end, share = _shown(gaps.ordered), percent(closed, 0)
    change = gaps.ordered.mean - gaps.unordered.mean
    if closed > 0 and change < 0:
        return f"{best} brings it back to {end}, which closes {share} of that gap{beside}."
    if closed == 0 and change == 0:
        return f"{best} changes nothing{beside}."
    if closed < 0 and change > 0 and max(rivals.values(), default=closed) <= 0:
        grown = f"{end}, and the gap grows by {percent(-closed, 0)}"
        if not rivals:
            return f"{best} does not help: with it, it is {grown}."
        return f"No other order helped: with {best}, the best of them, it is {grown}{beside}."
    # Means of shares and of perplexities may point to different sides.
    return f"With {best} it is {end}; on average, {share} of that gap is closed{beside}."


def _on_scores(pruned: list[Setting]) -> str:
    """Without perplexities, the retained scores tell the runs apart."""
    kept = {setting.label: spread for setting in pruned if (spread := setting.spread("retained"))}
    if not kept:
        return "No perplexity was measured."
    best = max(kept, key=lambda label: kept[label].mean)
    share = with_deviation(kept[best].mean, kept[best].deviation, percent)
    if len(kept) == 1:
        return f"{best} keeps {share} of the importance scores; no perplexity was measured."
    return (
        f"Of {len(kept)} pruned models, {best} keeps most of the importance scores, {share}; "
        "no perplexity was measured."
    )


def _on_repeats(pruned: list[Setting]) -> str:
    """How many repeats the figures are means of."""
    counts = sorted({len(setting.runs) for setting in pruned})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Figures are means ± standard deviations of {many} repeat{'s' * (counts[-1] > 1)}."


def _shown(figure: Spread) -> str:
    return with_deviation(figure.mean, figure.deviation)
