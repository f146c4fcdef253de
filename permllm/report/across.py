"""Runs of several folders in one table, and in formats that programs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import attrs

from permllm.comparing.comparison import PERPLEXITY, difference, gap, gaps, perplexities, rival
from permllm.comparing.repeats import Setting, setting_of
from permllm.comparing.table import Row
from permllm.pipeline.plain import dotted, walk
from permllm.report.comparable import differences
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
    warned = [Warned(one.what, one.message(), one.values) for one in differences(selections)]
    return Comparison(tuple(rows), (*warned, *_lone_repeats(selections)))


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each run with plain numbers; what the matrix sets are columns."""
    runs = [(row, run) for row in rows for run in row.setting.every]
    told = _telling(options(run) for _, run in runs) | {
        key for _, run in runs for key in run.options
    }
    records = [_run_record(row, run, told) for row, run in runs]
    columns = {section: dict.fromkeys(n for one in records for n in one[section])
               for section in ("head", "options", "figures", "end")}  # fmt: skip
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([name for names in columns.values() for name in names])
    for one in records:
        writer.writerow([one[part].get(name) for part, names in columns.items() for name in names])
    return stream.getvalue()


def _telling(every: Iterable[Mapping[str, Any]]) -> set[str]:
    """The keys that have several values; a component's other options say no more than its name."""
    values: dict[str, set[Any]] = {}
    for flat in every:
        for key, value in flat.items():
            values.setdefault(key, set()).add(value)
    return {key for key, distinct in values.items() if len(distinct) > 1}


def _run_record(row: Row, run: RunResult, told: Collection[str]) -> dict[str, dict[str, Any]]:
    """A run as plain data, in the sections that the columns of a table stand in.

    Args:
        row: that it stands for.
        run: the run.
        told: the keys of options that are columns.
    """
    figures: dict[str, Any] = {}
    for name, value in run.figures.items():
        figures[name] = value
        if name.startswith(PERPLEXITY) and (one := gap(row.results, run, name)):
            figures[f"{name} gap closed"] = one.closed
    pruned = run.label != DENSE
    return {
        "head": {"method": row.setting.label, "from": " ".join(row.sources), "repeat": run.repeat},
        "options": {key: value for key, value in options(run).items() if key in told},
        "figures": figures,
        "end": {
            "seconds": run.seconds if pruned and run.error is None else None,
            "peak_memory_bytes": run.peak_memory_bytes or None,
            "error": " ".join((run.error or "").split()),
        },
    }


def options(run: RunResult) -> dict[str, Any]:
    """What the matrix set, flat: a component by its name, and each of its options by its key."""
    flat: dict[str, Any] = {}
    for key, value in run.options.items():
        for place, leaf in walk(value):
            named = place[-1:] == ("name",)
            way = dotted(place[:-1] if named else place)
            flat[f"{key}.{way}" if way else key] = (
                leaf if isinstance(leaf, str) else json.dumps(leaf, ensure_ascii=False)
            )
    return flat


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
        name: found.closed.mean
        for name in perplexities(row.results)
        if (found := gaps(row.results, setting, name)) and found.closed
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
        "options": next(iter(setting.every)).options,
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
