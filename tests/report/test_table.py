"""The comparison table, in the terminal and in Markdown."""

from __future__ import annotations

import io

import attrs
import pytest
from rich.console import Console

from permllm.report.table import comparison, markdown


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
