"""The comparison table of permllm as rows that a page can show."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from rich.text import Text

from permllm.report.table import comparison
from permllm.results import Results, RunResult


@attrs.frozen
class Row:
    """A line of the table.

    Attributes:
        number: from 1.
        label: the run's, or that of the setting that several repeats share.
        cells: what the columns say.
        runs: the runs that it stands for.
    """

    number: int
    label: str
    cells: tuple[str, ...]
    runs: tuple[RunResult, ...]

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """Those of its runs that broke."""
        return tuple(run for run in self.runs if run.error is not None)


@attrs.frozen
class ComparisonTable:
    """Headings and rows, as permllm shows them in the terminal.

    Attributes:
        headings: the first is that of the labels.
        rows: dense first.
    """

    headings: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of each setting, which is that of its first row."""
        return {run.setting: row.number for row in reversed(self.rows) for run in row.runs}

    @property
    def has_deviations(self) -> bool:
        """Whether a cell says what it is give or take."""
        return any("±" in cell for row in self.rows for cell in row.cells)


def comparison_table(results: Results) -> ComparisonTable:
    """The comparison of runs that ended."""
    table = comparison(results)
    # The first column holds the labels, which the page takes from the results.
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns[1:]]
    lines = list(zip(*columns, strict=True))
    rows = tuple(
        Row(number, label, cells, runs)
        for number, (cells, (label, runs)) in enumerate(
            zip(lines, _labelled(results, len(lines)), strict=True), start=1
        )
    )
    return ComparisonTable(tuple(_plain(column.header) for column in table.columns), rows)


def _labelled(results: Results, rows: int) -> list[tuple[str, tuple[RunResult, ...]]]:
    """Label and runs of each row: one run, or all repeats of a setting if they share a row."""
    settings: dict[str, list[RunResult]] = {}
    for run in results.runs:
        settings.setdefault(run.setting, []).append(run)
    if rows == len(settings):
        return [(label, tuple(runs)) for label, runs in settings.items()]
    return [(run.label, (run,)) for run in results.runs]


def _plain(cell: object) -> str:
    """The text of a cell, which may be aligned."""
    inside = getattr(cell, "renderable", cell)
    return inside.plain if isinstance(inside, Text) else str(inside)
