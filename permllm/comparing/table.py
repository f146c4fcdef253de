"""The comparison of runs, as a table for the terminal, in Markdown and in LaTeX."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean

import attrs
from rich.align import Align
from rich.console import Console
from rich.table import Table
from rich.text import Text

from permllm.comparing.comparison import PERPLEXITY, difference, gaps, rival
from permllm.comparing.repeats import Setting, settings
from permllm.comparing.sentence import sentence
from permllm.measured import DENSE, Measured, RunResult
from permllm.printing import longest_word, plain
from permllm.units import duration, memory, number, percent, with_deviation

__all__ = ["Row", "columns", "comparison", "markdown", "rows_of", "sentence"]

NOTHING = "–"
"""Stands where a run has no such figure."""

SHORT_NAMES = {
    "fidelity/kl": "KL from dense",
    "fidelity/cosine": "cosine to dense",
}
"""Headings of figures whose names say little; ``/`` becomes a new line in the others."""

HIDDEN = ("/stderr", "/nm_violations")
"""Endings of figures that are in results.json only."""

SHARES = {"retained": "retained\nscore", "sparsity": "sparsity", "left_dense": "left\ndense"}
"""Figures that are shares of 1, with their headings."""

LONGEST_ERROR = 60
"""Characters of a failed run's error that a table shows."""

LONGEST_METHOD = 32
"""Characters of a label in one line of a terminal, unless one of its words is longer."""


@attrs.frozen
class Row:
    """One row: a setting, whose single run it mostly is.

    Attributes:
        setting: its runs.
        results: of the whole pipeline, where the runs are that it is compared with.
        sources: the folders that it is from, if the table says so.
    """

    setting: Setting
    results: Measured
    sources: tuple[str, ...] = ()


@attrs.frozen
class Column:
    """A heading and what it shows of a row."""

    heading: str
    show: Callable[[Row], str]


def rows_of(results: Measured) -> list[Row]:
    """A row for each setting, the dense model first."""
    return [Row(setting, results) for setting in settings(results)]


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns after the method.

    Perplexities with their gaps come first, then shares, other figures and costs. Where
    there are repeats, their number and the differences from the rival are there, too.
    """
    repeated = any(row.setting.count > 1 for row in rows)
    names = shown_figures(rows)
    perplexities = [name for name in names if name.startswith(PERPLEXITY)]
    # Without a perplexity, the first other figure has to tell settings apart.
    compared = (perplexities or [name for name in names if name != "sparsity"][:1]) * repeated
    chosen = [Column("n", _count)] if repeated else []
    for name in [*perplexities, *(name for name in names if name not in perplexities)]:
        chosen.append(_figure(name))
        if name in perplexities:
            chosen.append(_gap_column(name))
        if name in compared:
            chosen.append(_difference_column(rows, name))
    chosen.append(Column("time", _time))
    chosen.append(Column("peak\nmemory", _memory))
    return chosen


def shown_figures(rows: Sequence[Row]) -> list[str]:
    """The figures that are columns: perplexities, shares, then the others as measured."""
    names = list(
        dict.fromkeys(name for row in rows for run in row.setting.runs for name in run.figures)
    )
    first = [name for name in names if name.startswith(PERPLEXITY)]
    first += [name for name in SHARES if name in names]
    return first + [name for name in names if name not in first and not name.endswith(HIDDEN)]


def comparison(results: Measured) -> Table:
    """The table of all runs, dense first, for the terminal."""
    return table_of(rows_of(results))


def tables_of(rows: Sequence[Row], console: Console) -> list[Table]:
    """The table of some rows, cut into several of its columns where it is wider than a terminal."""
    unbounded = console.options.update_width(sys.maxsize)
    tables: list[Table] = []
    here: list[Column] = []
    for column in columns(rows):
        wider = table_of(rows, [*here, column])
        if here and console.measure(wider, options=unbounded).maximum > console.width:
            here, wider = [column], table_of(rows, [column])
            tables.append(wider)
        else:
            here = [*here, column]
            tables[-1:] = [wider]
    return tables


def table_of(rows: Sequence[Row], shown: Sequence[Column] | None = None) -> Table:
    """The table of some rows for the terminal; with sources, they are a column.

    Args:
        rows: its rows.
        shown: the columns after the method, all where it is None.
    """
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    headings, names = _names(rows)
    for place, heading in enumerate(headings):
        room = max(LONGEST_METHOD, longest_word(plain(own[place]) for own in names))
        table.add_column(heading, overflow="fold", max_width=room)
    shown = columns(rows) if shown is None else shown
    for column in shown:
        title = Text(plain(column.heading))
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True)
    for row, own in zip(rows, names, strict=True):
        figures = [Text(_in_lines(plain(column.show(row)))) for column in shown]
        table.add_row(
            *(Text(plain(name)) for name in own),
            *(Align.right(figure, vertical="top") for figure in figures),
        )
    return table


def markdown(results: Measured) -> str:
    """The same table in Markdown."""
    return markdown_of(rows_of(results))


def markdown_of(rows: Sequence[Row]) -> str:
    """The table of some rows in Markdown; with sources, they are a column."""
    head, *lines = _cells(rows)
    named = len(_names(rows)[0])
    rule = "|" + " --- |" * named + " ---: |" * (len(head) - named)
    return "\n".join([_row(head), rule, *map(_row, lines)])


def latex_of(rows: Sequence[Row]) -> str:
    """The table of some rows in LaTeX, with the rules of the package booktabs."""
    head, *lines = (" & ".join(map(_in_latex, cells)) + r" \\" for cells in _cells(rows))
    named = len(_names(rows)[0])
    placed = "l" * named + "r" * len(columns(rows))
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{placed}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def html(results: Measured) -> str:
    """The table of all runs in HTML, below the sentence on them."""
    head, *lines = _cells(rows_of(results))
    parts = [_html_row("th", head), *(_html_row("td", line) for line in lines)]
    return f"<p>{escape(plain(sentence(results)))}</p>\n<table>\n{''.join(parts)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(plain(cell))}</{tag}>' for cell in cells)}</tr>\n"


def _names(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of what says which row it is: the method and, if known, where from."""
    if any(row.sources for row in rows):
        return ["method", "from"], [[method(row), ", ".join(row.sources)] for row in rows]
    return ["method"], [[method(row)] for row in rows]


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and rows, each cell in one line."""
    shown = columns(rows)
    headings, names = _names(rows)
    lines = [[*headings, *(column.heading.replace("\n", " ") for column in shown)]]
    for row, own in zip(rows, names, strict=True):
        texts = (text.replace("\n", ", ") for text in own)
        lines.append([*texts, *(column.show(row) for column in shown)])
    return lines


def _in_lines(cell: str) -> str:
    """What a figure is give or take in a line of its own, with its unit: terminals are narrow.

    >>> _in_lines("77.1 ± 0.2 %"), _in_lines("-18.00 ± 2.00 (3 of 3)")
    ('77.1 %\\n± 0.2 %', '-18.00\\n± 2.00\\n(3 of 3)')
    """
    mean, off, rest = cell.partition(" ±")
    unit = " %" if off and rest.endswith(" %") else ""
    return re.sub(r" (?=[±(])", "\n", f"{mean}{unit}{off}{rest}")


LATEX = {
    "\\": r"\textbackslash{}",
    **{special: f"\\{special}" for special in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "…": r"\ldots{}",
    "–": "--",
}
"""What LaTeX reads otherwise than it stands, or does not know."""


def _in_latex(cell: str) -> str:
    r"""A cell as LaTeX: its signs escaped, and a negative number's minus a minus.

    >>> _in_latex("50.0 ± 0.2 %"), _in_latex("q_proj"), _in_latex("-18.00")
    ('50.0 $\\pm$ 0.2 \\%', 'q\\_proj', '$-$18.00')
    """
    text = "".join(LATEX.get(sign, sign) for sign in plain(cell))
    return re.sub(r"^([-+])(?=\d)", r"$\1$", text)


def method(row: Row) -> str:
    """The label of a row and, in a line of its own, what broke if something did."""
    setting = row.setting
    if not setting.failed:
        return setting.label
    first = setting.failed[0]
    which = f"#{first.repeat + 1} " if setting.count > 1 else ""
    return f"{setting.label}\n{which}failed: {short_error(first)}"


def short_error(run: RunResult) -> str:
    """The first line of what broke a run, not too long; its words stay whole."""
    line = (run.error or "").strip().partition("\n")[0]
    # A single long word would leave nothing.
    room = max(LONGEST_ERROR, len(line.split(" ", 1)[0]) + 2)
    return textwrap.shorten(line, room, placeholder=" …")


def heading(name: str) -> str:
    """A figure's name as a narrow heading.

    >>> heading("perplexity/python-docs")
    'perplexity\\npython-docs'
    """
    return SHARES.get(name) or SHORT_NAMES.get(name, name.replace("/", "\n"))


def _figure(name: str) -> Column:
    form = percent if name in SHARES else number

    def show(row: Row) -> str:
        spread = row.setting.spread(name)
        return with_deviation(spread.mean, spread.deviation, form) if spread else NOTHING

    return Column(heading(name), show)


def _gap_column(name: str) -> Column:
    def show(row: Row) -> str:
        gap = gaps(row.results, row.setting, name)
        closed = gap and gap.closed
        return with_deviation(closed.mean, closed.deviation, percent) if closed else NOTHING

    return Column("gap\nclosed", show)


def _difference_column(rows: Sequence[Row], name: str) -> Column:
    """Mean difference and standard error, and in how many pairs of repeats it is better."""
    lower_is_better = name.startswith(PERPLEXITY)

    def show(row: Row) -> str:
        paired = difference(row.results, row.setting, name)
        if paired is None:
            return NOTHING
        sign = "+" if paired.mean > 0 else ""
        better = paired.lower if lower_is_better else paired.higher
        text = with_deviation(paired.mean, paired.error)
        return f"{sign}{text} ({better} of {paired.count})"

    rivals = {
        paired.label for row in rows if (paired := rival(row.results, row.setting)) is not None
    }
    against = rivals.pop() if len(rivals) == 1 else "reference"
    return Column(f"against {against}\n({'better' if lower_is_better else 'higher'} in)", show)


def _count(row: Row) -> str:
    finished, asked = len(row.setting.runs), row.setting.count
    return str(finished) if finished == asked else f"{finished} of {asked}"


def _time(row: Row) -> str:
    runs = row.setting.runs
    if not runs or row.setting.label == DENSE:
        return NOTHING
    return duration(fmean(run.seconds for run in runs))


def _memory(row: Row) -> str:
    peaks = [run.peak_memory_bytes for run in row.setting.runs]
    return memory(max(peaks)) if peaks else NOTHING


def _row(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
