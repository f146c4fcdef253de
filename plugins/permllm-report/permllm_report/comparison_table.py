"""The comparison table of permllm as rows that a page can show."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from permllm.reporting import columns, rows_of
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
    settings = rows_of(results)
    shown = columns(settings)
    rows = tuple(
        Row(
            number,
            row.setting.label,
            tuple(column.show(row) for column in shown),
            row.setting.every,
        )
        for number, row in enumerate(settings, start=1)
    )
    headings = ("method", *(column.heading for column in shown))
    return ComparisonTable(headings, rows)
