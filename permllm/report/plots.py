"""Pictures of a pipeline's runs, as PNG and SVG.

They are drawn with matplotlib's object-oriented interface, which keeps no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permllm.comparing.comparison import PERPLEXITY, perplexities
from permllm.comparing.repeats import Setting, Spread, settings, spread
from permllm.report.history import training_history, window_starts
from permllm.report.pictures import Picture, write_pictures
from permllm.results import DENSE, LayerReport, Results, RunResult
from permllm.runs.events import read_events
from permllm.runs.layers import by_kind, by_layer, mean
from permllm.units import with_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from permllm.runs.plan import Plan

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too; yellow is too faint."""

GREY, FAINT = "#8C8C8C", "#E5E5E5"
"""For the dense model and what was before, and for the grid."""

LINES = ("-", "--", "-.", ":")
"""Once the colours are used up, runs differ by these as well."""

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "legend.frameon": False,
    # Labels hold whatever a pipeline file says; dollars are no formulae.
    "text.parse_math": False,
    # The same results give the same file.
    "svg.hashsalt": "permllm",
}
"""The look of permllm's pictures, as matplotlib's settings."""

MAX_KINDS = 9
"""Models with more kinds of linears get one panel for all together."""

LOGARITHMIC = 50
"""Perplexities that differ by this factor need a logarithmic axis."""

LEGEND_INSIDE = 6
"""More runs than these are named beside the picture."""

Course = Sequence[tuple[float, float]]
"""Steps and values, in order."""

SCHEDULES = ("temperature",)
"""What is drawn below the losses, where a run has it."""


def write_plots(results: Results, plan: Plan) -> list[Path]:
    """Draw everything into ``plots/`` of the pipeline's folder and of each run's.

    What was drawn of the same before is left as it is.

    Args:
        results: what was measured.
        plan: names the folders; the course of training is read from its event log.

    Returns:
        the PNG files; an SVG lies beside each.
    """
    import matplotlib as mpl

    events = read_events(plan.out)
    history, starts = training_history(events), window_starts(events)
    with mpl.rc_context(STYLE):
        written = write_pictures(plan.out / "plots", _of_the_plan(results, history))
        for run in plan.runs:
            label = run.label
            pictures = _of_a_run(results[label], history.get(label, {}), starts.get(label, ()))
            written += write_pictures(run.directory / "plots", pictures)
    return written


def _of_the_plan(
    results: Results, history: Mapping[str, Mapping[str, Course]]
) -> dict[str, Picture]:
    finished = [run for run in results.runs if run.error is None]
    trained: dict[str, list[Mapping[str, Course]]] = {}
    for run in finished:
        if run.label in history:
            trained.setdefault(run.setting, []).append(history[run.label])
    pruned = [setting for setting in settings(results) if any(run.layers for run in setting.runs)]
    pictures = {"perplexity": Picture(perplexity_bars, (results,))}
    if pruned:
        pictures["retained"] = Picture(retained_by_setting, (pruned,))
    if trained:
        pictures["training"] = Picture(training_curves, (trained,))
    return pictures


def _of_a_run(
    run: RunResult, history: Mapping[str, Course], starts: Sequence[int]
) -> dict[str, Picture]:
    pictures = {}
    if run.layers:
        pictures["retained"] = Picture(retained_by_kind, (run,))
    if history:
        pictures["training"] = Picture(training_curves, ({run.label: [history]}, starts))
    return pictures


# --- the pictures -------------------------------------------------------------------


def training_curves(
    history: Mapping[str, Sequence[Mapping[str, Course]]],
    starts: Sequence[int] = (),
    *,
    titled: bool = True,
    width: float = 6.4,
) -> Figure:
    """Loss and held-out loss per step above, temperature below, of each setting's repeats.

    Args:
        history: by setting, the figures of each repeat.
        starts: the steps after which another part of the training begins.
        titled: whether it says whose training it is.
        width: in inches.
    """
    every = [figures for repeats in history.values() for figures in repeats]
    schedules = [name for name in SCHEDULES if any(name in figures for figures in every)]
    heights = [3.0, *(1.0 for _ in schedules)]
    figure = _figure(width, 3.0 + 1.3 * len(schedules))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for index, (label, repeats) in enumerate(history.items()):
        _losses(axes[0], repeats, starts, index, None if len(history) == 1 else label)
        colour, line = _look(index)
        for panel, schedule in zip(axes[1:], schedules, strict=True):
            for figures in repeats:
                _curve(panel, figures.get(schedule, ()), starts, color=colour, linestyle=line)
            panel.set_ylabel(schedule)
            panel.set_ylim(bottom=0)
    for panel in axes:
        for start in starts:
            panel.axvline(start + 0.5, color=GREY, linestyle=":", linewidth=0.8)
    axes[0].set_ylabel("loss")
    axes[-1].set_xlabel("training step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    if titled:
        title = f"Training of {next(iter(history))}" if len(history) == 1 else "Training"
        axes[0].set_title(title, loc="left")
    _legend(figure, axes[0], 2 * len(history))
    return figure


def retained_by_setting(pruned: Sequence[Setting]) -> Figure:
    """The retained score of each decoder layer, for each setting, and in the original order.

    Repeats are averaged; what they scatter by is shaded.
    """
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    courses: list[list[float]] = []
    averages = [
        _average([_courses(run.layers) for run in one.runs if run.layers]) for one in pruned
    ]
    for setting, (layers, before, _) in zip(pruned, averages, strict=True):
        course = [share.mean for share in before]
        # Settings of one metric and pattern have the original order in common.
        if course not in courses:
            courses.append(course)
            name = "original order" if len(courses) == 1 else f"original order, {setting.label}"
            axes.plot(layers, course, color=GREY, linestyle=LINES[-len(courses) % 4], label=name)
    for index, (setting, (layers, before, after)) in enumerate(zip(pruned, averages, strict=True)):
        if after != before:
            colour, line = _look(index)
            course = [share.mean for share in after]
            axes.plot(layers, course, color=colour, linestyle=line, marker=_dots(layers),
                      markersize=3, label=setting.label)  # fmt: skip
            off = [share.deviation or 0.0 for share in after]
            low = [value - width for value, width in zip(course, off, strict=True)]
            high = [value + width for value, width in zip(course, off, strict=True)]
            if any(off):
                axes.fill_between(layers, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title("Importance score that pruning keeps", loc="left")
    _label_layers(axes)
    _legend(figure, axes, len(pruned) + len(courses))
    return figure


def retained_by_kind(run: RunResult) -> Figure:
    """The retained score of each decoder layer before and after, a panel per kind of linear."""
    kinds = by_kind(run.layers)
    if len(kinds) > MAX_KINDS:
        kinds = {"all linears": list(run.layers)}
    wide = min(3 if len(kinds) > 4 else 2, len(kinds))
    high = -(-len(kinds) // wide)
    figure = _figure(max(5.0, 3.2 * wide), 0.6 + 2.2 * high)
    axes = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
    for panel, (kind, reports) in zip(axes.flat, kinds.items(), strict=False):
        layers, before, after = _courses(reports)
        marker = _dots(layers)
        panel.plot(layers, before, color=GREY, marker=marker, markersize=3, label="original order")
        panel.plot(layers, after, color=COLOURS[0], marker=marker, markersize=3, label=run.label)
        panel.set_title(kind, loc="left", fontsize=8.5)
        _label_layers(panel)
        panel.label_outer()
    for panel in list(axes.flat)[len(kinds) :]:
        panel.set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def perplexity_bars(results: Results) -> Figure | None:
    """A bar per setting, dense included, a panel per perplexity figure.

    Repeats have error bars of one standard deviation.
    """
    from matplotlib.ticker import LogLocator

    names, every = perplexities(results), [one for one in settings(results) if one.runs]
    if not names:
        return None
    figure = _figure(6.4 if len(names) == 1 else 9.0, 1.0 + 0.32 * len(every))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(axes, names, strict=True):
        spreads = [(place, one.label, one.spread(name)) for place, one in enumerate(every)]
        bars = [(place, label, value) for place, label, value in spreads if value]
        finite = [_finite(value.mean) for _, _, value in bars]
        deviations = [_finite(value.deviation or 0.0) for _, _, value in bars]
        drawn = panel.barh(
            [place for place, _, _ in bars],
            finite,
            color=[GREY if label == DENSE else COLOURS[0] for _, label, _ in bars],
            height=0.65,
            **({"xerr": deviations, "error_kw": {"capsize": 3}} if any(deviations) else {}),
        )
        texts = [with_deviation(value.mean, value.deviation) for _, _, value in bars]
        panel.bar_label(drawn, texts, padding=3)
        if max(finite) > LOGARITHMIC * max(min(finite), 1.0):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            # The usual ones write formulae, those of minor ticks, too.
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
        panel.margins(x=0.15)
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        panel.set_xlabel(f"perplexity on {name.removeprefix(PERPLEXITY)} (lower is better)")
    # By place: labels that are cropped to the same text are still two bars.
    axes[0].set_yticks(range(len(every)), [cropped(one.label, 40) for one in every])
    axes[0].invert_yaxis()
    return figure


# --- their parts --------------------------------------------------------------------


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _look(index: int) -> tuple[str, str]:
    """Colour and line of the run with this index."""
    return COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]


def _losses(
    axes: Axes,
    repeats: Sequence[Mapping[str, Course]],
    starts: Sequence[int],
    index: int,
    label: str | None,
) -> None:
    """The losses of a setting's repeats; those of the only setting, without a label, differ."""
    colour, line = _look(index)
    names = ("loss", "held-out loss") if label is None else (label, f"{label}, held out")
    # Losses of single batches scatter; what is measured on held-out text stands out.
    loss = {"color": colour, "linestyle": line, "alpha": 0.55}
    marked = {"color": COLOURS[1] if label is None else colour, "linestyle": line,
              "marker": "o", "markersize": 3.5}  # fmt: skip
    for figures in repeats:
        _curve(axes, figures.get("loss", ()), starts, label=names[0], **loss)
        _curve(axes, figures.get("held_out_loss", ()), starts, label=names[1], **marked)
        # Further repeats look alike and are not named again.
        names = ("_", "_")


def _curve(axes: Axes, course: Course, starts: Sequence[int], **style: Any) -> None:
    """A line through a course, with a gap where another part of the training begins."""
    if course:
        gaps = [(start + 0.5, math.nan) for start in starts]
        axes.plot(*zip(*sorted([*course, *gaps]), strict=True), **style)


def _courses(reports: Sequence[LayerReport]) -> tuple[list[int], list[float], list[float]]:
    """Layer numbers, and the retained share of each in per cent before and after."""
    layers = dict(sorted(by_layer(reports).items()))

    def course(value: Callable[[LayerReport], float]) -> list[float]:
        return [100 * mean(linears, value) for linears in layers.values()]

    before = course(lambda report: report.retained_before)
    return list(layers), before, course(lambda report: report.retained)


def _average(
    runs: Sequence[tuple[list[int], list[float], list[float]]],
) -> tuple[list[int], list[Spread], list[Spread]]:
    """The courses of repeats, averaged layer by layer."""

    def averaged(courses: Sequence[list[float]]) -> list[Spread]:
        return [
            average
            for values in zip(*courses, strict=True)
            if (average := spread(values)) is not None
        ]

    return runs[0][0], averaged([run[1] for run in runs]), averaged([run[2] for run in runs])


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _label_layers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("decoder layer")
    axes.set_ylabel("retained score (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _dots(points: Sequence[int]) -> str:
    """Few points are marked: a line through one of them cannot be seen."""
    return "o" if len(points) <= 40 else ""


def _legend(figure: Figure, axes: Axes, entries: int) -> None:
    if entries > LEGEND_INSIDE:
        handles, labels = axes.get_legend_handles_labels()
        short = [cropped(label, 32) for label in labels]
        figure.set_figwidth(figure.get_figwidth() + 2.2)
        figure.legend(handles, short, loc="outside right upper", fontsize=8)
    else:
        axes.legend()


def cropped(text: str, length: int) -> str:
    """The text, or its beginning and ``…``."""
    return text if len(text) <= length else text[: length - 1] + "…"
