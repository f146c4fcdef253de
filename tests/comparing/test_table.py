"""The comparison table, in the terminal and in Markdown."""

from __future__ import annotations

import io
import re

import attrs
import pytest
from rich.console import Console

from permllm.comparing.table import (
    columns,
    comparison,
    latex_of,
    markdown,
    rows_of,
    short_error,
    tables_of,
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def shown(results, width: int = 100) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=width, color_system=None).print(comparison(results))
    return screen.getvalue().splitlines()


def test_quickstart_in_markdown(results) -> None:
    head, rule, *rows = markdown(results()).splitlines()
    assert cells(head) == [
        "method",
        "perplexity python-docs",
        "gap closed",
        "retained score",
        "sparsity",
        "time",
        "peak memory",
    ]
    assert rule.count("---:") == 6
    assert cells(rows[0]) == ["dense", "20.00", "–", "–", "0.0 %", "–", "1.0 GiB"]
    assert cells(rows[1]) == ["none", "100.0", "–", "81.2 %", "50.0 %", "1 min 23 s", "3.0 GiB"]
    assert cells(rows[3]) == ["lcp", "40.00", "75.0 %", "81.2 %", "50.0 %", "1 min 23 s", "3.0 GiB"]


def test_quickstart_fits_a_hundred_columns(results) -> None:
    lines = shown(results())
    assert max(map(len, lines)) <= 100
    # Two lines of headings, a rule, and one line for each run: nothing is wrapped.
    assert len(lines) == 3 + 4
    for line, label in zip(lines[3:], ("dense", "none", "cp", "lcp"), strict=True):
        assert line.split()[0] == label


@pytest.mark.parametrize("width", [20, 50, 80, 200])
def test_narrow_terminals_get_several_tables_with_every_figure(results, width: int) -> None:
    rows = rows_of(results())
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tables = tables_of(rows, console)
    assert len(tables) == 1 if width >= 80 else len(tables) > 1
    headings = [column.header for table in tables for column in table.columns[1:]]
    assert [str(heading) for heading in headings] == [c.heading for c in columns(rows)]
    for table in tables:
        console.print(table)
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_other_figures_are_columns_and_errors_are_not(results, pruned) -> None:
    run = pruned("cp", 50.0)
    run = attrs.evolve(
        run,
        figures=run.figures
        | {
            "choices/arc": 0.25,
            "choices/arc/stderr": 0.01,
            "fidelity/kl": 1.5,
            "sparsity/nm_violations": 0.0,
        },
    )
    head = cells(markdown(results(run)).splitlines()[0])
    assert "choices arc" in head
    assert "KL from dense" in head
    assert not any("stderr" in title or "violations" in title for title in head)


def test_each_perplexity_has_its_gap(results, pruned) -> None:
    run = pruned("cp", 50.0)
    run = attrs.evolve(run, figures=run.figures | {"perplexity/wikitext": 70.0})
    head = cells(markdown(results(run)).splitlines()[0])
    assert head[1:5] == [
        "perplexity python-docs",
        "gap closed",
        "perplexity wikitext",
        "gap closed",
    ]


@pytest.mark.parametrize("label", ["lcp(block=64) | [red]x[/red]", "[bold]"])
def test_labels_are_shown_as_they_are(results, pruned, label: str) -> None:
    made = results(pruned(label, 50.0))
    assert label in "\n".join(shown(made))
    assert label.replace("|", "\\|") in markdown(made)


def test_repeats_are_one_row_with_their_spread(study) -> None:
    made = study(none=[100.0, 120.0, 110.0], cp=[80.0, 100.0, 96.0])
    head, _, *rows = markdown(made).splitlines()
    assert cells(head)[:5] == [
        "method",
        "n",
        "perplexity python-docs",
        "gap closed",
        "against none (better in)",
    ]
    assert cells(rows[0])[:5] == ["dense", "1", "20.00", "–", "–"]
    assert cells(rows[1])[:5] == ["none", "3", "110.0 ± 10.0", "–", "–"]
    assert cells(rows[2])[:5] == [
        "cp",
        "3",
        "92.00 ± 10.58",
        "20.2 ± 4.7 %",
        "-18.00 ± 2.00 (3 of 3)",
    ]
    assert cells(rows[2])[5:] == ["81.2 ± 0.0 %", "50.0 ± 0.0 %", "1 min 23 s", "3.0 GiB"]
    assert len(rows) == 3
    # On a terminal, a setting has three lines of its own, and nothing is cut off.
    lines = shown(made)
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[-6:] if line.split()[0] != "│"] == [
        "dense",
        "none",
        "cp",
    ]
    assert "peak" in "".join(lines)
    assert "(3 of 3)" in lines[-1]


def test_without_perplexity_the_first_figure_is_compared(study, without) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, 100.0])
    runs = [without(run, "perplexity/python-docs") for run in made.runs]
    runs[-1] = attrs.evolve(runs[-1], figures=runs[-1].figures | {"retained": 0.9})
    head, *_, last = markdown(attrs.evolve(made, runs=tuple(runs))).splitlines()
    assert cells(head)[2:4] == ["retained score", "against none (higher in)"]
    assert cells(last)[3] == "+0.04375 ± 0.04375 (1 of 2)"


def test_words_and_units_stay_whole(study) -> None:
    long = "layers.permutation=a-very-long-name-of-somebodys-own-learner"
    made = study(**{"none": [100.0, 120.0], f"{long} x": [80.0, 100.0]})
    screen = Console(file=io.StringIO(), width=90, color_system=None)
    for table in tables_of(rows_of(made), screen):
        screen.print(table)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(long in line for line in lines)
    assert any("22.5 %" in line for line in lines)
    figures = [cell for line in lines for cell in re.split(r"[│ ]{2,}", line) if "±" in cell]
    assert "± 3.5 %" in [cell.strip() for cell in figures]


def test_latex_is_escaped(study, results, pruned) -> None:
    head, *lines = latex_of(rows_of(study(none=[100.0, 120.0], cp_x=[80.0, 100.0]))).splitlines()
    assert head == r"\begin{tabular}{lrrrrrrrr}"
    assert lines[:1] + lines[2:3] + lines[-2:] == [
        r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"
    ]  # fmt: skip
    assert lines[5].startswith(r"cp\_x & 2 & 90.00 $\pm$ 14.14 & 22.5 $\pm$ 3.5 \% & $-$20.00 ")
    assert lines[5].endswith(r" \\")
    assert r"a\&b \{c\}\textbar{}" in latex_of(rows_of(results(pruned("a&b {c}|", 50.0))))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("a reason", "a reason"),
        ("ValueError: " + "word " * 20, "ValueError: " + "word " * 9 + "…"),
        ("x" * 80 + " more", "x" * 80 + " …"),
    ],
)
def test_errors_are_cut_between_words(failed, pruned, error: str, shown: str) -> None:
    assert short_error(failed(pruned("cp", 1.0), error)) == shown


def test_failed_runs_say_so(study, results, pruned, failed) -> None:
    broken = failed(pruned("cp", 1.0), "ArithmeticError: not | today\nin line 3")
    row = markdown(results(pruned("none", 100.0), broken)).splitlines()[-1]
    assert cells(row.replace("\\|", "/"))[:2] == ["cp, failed: ArithmeticError: not / today", "–"]
    assert "failed: ArithmeticError" in "\n".join(shown(results(broken)))
    rows = markdown(study(none=[100.0, 120.0], cp=[80.0, None], lcp=[None, None])).splitlines()
    assert cells(rows[-2])[:5] == [
        "cp, #2 failed: ArithmeticError: not today",
        "1 of 2",
        "80.00",
        "25.0 %",
        "-20.00 (1 of 1)",
    ]
    assert cells(rows[-1])[:3] == ["lcp, #1 failed: ArithmeticError: not today", "0 of 2", "–"]
