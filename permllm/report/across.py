"""Runs of several folders in one table, and in formats that programs read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import attrs

from permllm.report.comparable import differences
from permllm.report.comparison import difference, gaps, perplexities, rival
from permllm.report.repeats import Setting, setting_of
from permllm.report.table import Row
from permllm.results import DENSE, RunResult
from permllm.runs.events import finite
from permllm.runs.reading import Selection, select


@attrs.frozen
class Warned:
    """Why rows should not be compared as they are.

    Attributes:
        what: such as ``pattern``.
        message: what differs between which folders.
        values: what it is in each folder.
    """

    what: str
    message: str
    values: dict[str, str]


@attrs.frozen(eq=False)
class Comparison:
    """Rows of several folders.

    Attributes:
        rows: each distinct dense model first, then the settings of each folder.
        warnings: what keeps them from being comparable.
    """

    rows: tuple[Row, ...]
    warnings: tuple[Warned, ...]


def compare(arguments: Sequence[str]) -> Comparison:
    """Gather runs of some folders.

    Args:
        arguments: folders, or ``FOLDER:LABEL`` for one of its runs.

    Raises:
        UserError: a folder holds no run, or none with this label.
    """
    selections = select(arguments)
    rows = _dense_rows(selections)
    for selection in selections:
        folder = selection.folder
        rows += [
            Row(setting, folder.results, (folder.name,)) for setting in _settings(selection.pruned)
        ]
    warned = [Warned(gap.what, gap.message(), gap.values) for gap in differences(selections)]
    return Comparison(tuple(rows), (*warned, *_lone_repeats(selections)))


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each row with plain numbers; means where there are repeats."""
    records = [record(row) for row in rows]
    figures = list(dict.fromkeys(name for one in records for name in one["figures"]))
    gapped = [name for name in figures if any(name in one["gap_closed"] for one in records)]
    repeated = any(row.setting.count > 1 for row in rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["method", "from", "n", "failed"]
    for name in figures:
        head += [name, f"{name} deviation"] if repeated else [name]
        head += [f"{name} gap closed"] if name in gapped else []
    writer.writerow([*head, "seconds", "peak_memory_bytes", "error"])
    for one in records:
        line = [one["label"], " ".join(one["from"]), one["n"], one["failed"]]
        for name in figures:
            line.append(one["figures"].get(name))
            line += [one["deviations"].get(name)] if repeated else []
            line += [one["gap_closed"].get(name)] if name in gapped else []
        error = " ".join(next(iter(one["errors"].values()), "").split())
        writer.writerow([*line, one["seconds"], one["peak_memory_bytes"], error])
    return stream.getvalue()


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data; figures that are not finite are None."""
    data: dict[str, Any] = finite(
        {
            "rows": [record(row) for row in comparison.rows],
            "warnings": [attrs.asdict(warned) for warned in comparison.warnings],
        }
    )
    return data


def record(row: Row) -> dict[str, Any]:
    """A row as plain data."""
    setting = row.setting
    names = list(dict.fromkeys(name for run in setting.runs for name in run.figures))
    spreads = {name: spread for name in names if (spread := setting.spread(name))}
    closed = {
        name: gap.closed.mean
        for name in perplexities(row.results)
        if (gap := gaps(row.results, setting, name)) and gap.closed
    }
    pruned = setting.label != DENSE
    return {
        "label": setting.label,
        "from": list(row.sources),
        "n": len(setting.runs),
        "failed": len(setting.failed),
        "figures": {name: spread.mean for name, spread in spreads.items()},
        "deviations": {
            name: spread.deviation
            for name, spread in spreads.items()
            if spread.deviation is not None
        },
        "gap_closed": closed,
        "difference": _differences(row, names),
        "seconds": fmean(run.seconds for run in setting.runs) if setting.runs and pruned else None,
        "peak_memory_bytes": max((run.peak_memory_bytes for run in setting.runs), default=None),
        "options": next(iter((*setting.runs, *setting.failed))).options,
        "errors": {run.label: run.error for run in setting.failed},
    }


def _differences(row: Row, names: Sequence[str]) -> dict[str, Any] | None:
    """The paired differences of all figures; None where there is nothing to compare with."""
    other = rival(row.results, row.setting)
    if other is None:
        return None
    differences = {name: difference(row.results, row.setting, name) for name in names}
    return {
        "from": other.label,
        "figures": {
            name: attrs.asdict(one) for name, one in differences.items() if one is not None
        },
    }


def _settings(runs: Sequence[RunResult]) -> list[Setting]:
    """The chosen runs by setting; a repeat that is alone goes by its own label."""
    settings: dict[str, list[RunResult]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run)
    return [
        setting_of(setting if len(same) > 1 else same[0].label, same)
        for setting, same in settings.items()
    ]


def _dense_rows(selections: Sequence[Selection]) -> list[Row]:
    """A row for each dense result that differs from those before it."""
    rows: list[Row] = []
    for selection in selections:
        results = selection.folder.results
        for run in results.runs:
            if run.label != DENSE or run.error is not None:
                continue
            same = [n for n, row in enumerate(rows) if row.setting.runs[0].figures == run.figures]
            if same:
                row = rows[same[0]]
                rows[same[0]] = attrs.evolve(row, sources=(*row.sources, selection.folder.name))
            else:
                rows.append(Row(setting_of(DENSE, [run]), results, (selection.folder.name,)))
    return rows


def _lone_repeats(selections: Sequence[Selection]) -> list[Warned]:
    """Chosen runs whose setting has more repeats than were chosen."""
    warnings = []
    for selection in selections:
        name, chosen = selection.folder.name, {run.label for run in selection.runs}
        for run in selection.pruned:
            repeats = [one for one in selection.folder.results.runs if one.setting == run.setting]
            if len(repeats) > 1 and sum(one.label in chosen for one in repeats) == 1:
                message = f"'{run.label}' in {name} is one of {len(repeats)} repeats"
                warnings.append(Warned("repeats", message, {name: str(len(repeats))}))
    return warnings
