"""The comparison of a pipeline's runs, as a table for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from rich.table import Table
from rich.text import Text

from permllm.report.comparison import DENSE, figure_names, gap, perplexities
from permllm.report.sentence import sentence
from permllm.report.units import duration, memory, number, percent
from permllm.results import Results, RunResult

__all__ = ["columns", "comparison", "markdown", "sentence"]

NOTHING = "–"
"""Stands where a run has no such figure."""

SHORT_NAMES = {
    "fidelity/kl": "KL from dense",
    "fidelity/cosine": "cosine to dense",
}
"""Headings of figures whose names say little; ``/`` becomes a new line in the others."""

HIDDEN = ("/stderr", "/nm_violations")
"""Endings of figures that are in results.json only."""


@attrs.frozen
class Column:
    """A heading and what it shows of a run."""

    heading: str
    show: Callable[[RunResult], str]


def columns(results: Results) -> list[Column]:
    """The columns after the method: perplexities with their gaps, shares, others, costs."""
    found: list[Column] = []
    names = perplexities(results)
    for name in names:
        found.append(_figure(name, heading(name), number))
        found.append(_gap_column(results, name))
    for name, said in (("retained", "retained\nscore"), ("sparsity", "sparsity")):
        if name in figure_names(results):
            found.append(_figure(name, said, percent))
    for name in figure_names(results):
        if name not in (*names, "retained", "sparsity") and not name.endswith(HIDDEN):
            found.append(_figure(name, heading(name), number))
    found.append(
        Column("time", lambda run: NOTHING if run.label == DENSE else duration(run.seconds))
    )
    found.append(Column("peak\nmemory", lambda run: memory(run.peak_memory_bytes)))
    return found


def comparison(results: Results) -> Table:
    """The table of all runs, dense first, for the terminal."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("method", overflow="fold")
    shown = columns(results)
    for column in shown:
        table.add_column(Text(column.heading), justify="right", vertical="bottom")
    for run in results.runs:
        table.add_row(Text(run.label), *(column.show(run) for column in shown))
    return table


def markdown(results: Results) -> str:
    """The same table in Markdown."""
    shown = columns(results)
    headings = ["method", *(column.heading.replace("\n", " ") for column in shown)]
    lines = [_row(headings), "| --- |" + " ---: |" * len(shown)]
    lines += [_row([run.label, *(column.show(run) for column in shown)]) for run in results.runs]
    return "\n".join(lines)


def heading(name: str) -> str:
    """A figure's name as a narrow heading.

    >>> heading("perplexity/python-docs")
    'perplexity\\npython-docs'
    """
    return SHORT_NAMES.get(name, name.replace("/", "\n"))


def _figure(name: str, title: str, form: Callable[[float], str]) -> Column:
    return Column(title, lambda run: form(run.figures[name]) if name in run.figures else NOTHING)


def _gap_column(results: Results, name: str) -> Column:
    def show(run: RunResult) -> str:
        found = gap(results, run, name)
        return NOTHING if found is None or found.closed is None else percent(found.closed)

    return Column("gap\nclosed", show)


def _row(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
