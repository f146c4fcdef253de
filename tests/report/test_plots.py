"""The pictures: all there, readable by their programs, and the same every time."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import attrs
import pytest

from permllm.comparing.repeats import settings
from permllm.report.plots import (
    MAX_KINDS,
    perplexity_bars,
    retained_by_kind,
    retained_by_setting,
    training_curves,
    write_plots,
)

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_picture_is_there_as_png_and_svg(drawn) -> None:
    plan, written = drawn
    expected = {
        plan.out / "plots" / f"{name}.png" for name in ("perplexity", "retained", "training")
    }
    expected |= {run.directory / "plots" / "retained.png" for run in plan.runs}
    expected.add(plan.runs[-1].directory / "plots" / "training.png")
    assert set(written) == expected
    for path in written:
        assert path.read_bytes().startswith(PNG)
        assert path.stat().st_size > 5000
        root = ElementTree.fromstring(path.with_suffix(".svg").read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")


def test_same_results_give_the_same_files(drawn, results) -> None:
    plan, written = drawn
    before = {path: path.with_suffix(".svg").read_bytes() for path in written}
    write_plots(results(), plan)
    assert before == {path: path.with_suffix(".svg").read_bytes() for path in written}


def test_repeats_are_bars_with_error_bars(study) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, 100.0], lcp=[30.0, None], greedy=[None, None])
    (axes,) = perplexity_bars(made).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dense", "none", "cp", "lcp"]
    assert [bar.get_width() for bar in axes.patches] == [20.0, 110.0, 90.0, 30.0]
    (errors,) = axes.collections
    low, high = errors.get_segments()[1][:, 0]
    assert (high - low) / 2 == pytest.approx(math.sqrt(200))
    assert "110.0 ± 14.1" in [text.get_text() for text in axes.texts]


def test_perplexities_that_are_far_apart_are_written_as_numbers(study) -> None:
    figure = perplexity_bars(study(none=[1e6], cp=[80.0]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    labels = [text.get_text() for text in axes.get_xticklabels(which="both")]
    assert {"100", "1e+06"} <= set(labels)
    assert not any("$" in label for label in labels)


def test_repeats_are_one_course(study) -> None:
    made = study(none=[100.0, 120.0], cp=[80.0, 100.0])
    changed = attrs.evolve(
        made.runs[-1],
        layers=tuple(attrs.evolve(r, retained=r.retained + 0.02) for r in made.runs[-1].layers),
    )
    made = attrs.evolve(made, runs=(*made.runs[:-1], changed))
    (axes,) = retained_by_setting(settings(made)[1:]).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"original order", "none", "cp"}
    assert lines["cp"].get_ydata()[0] == pytest.approx(76.0)
    assert len(axes.collections) == 1


def test_repeats_of_training_share_a_colour_and_a_name() -> None:
    course = {"loss": [(1, 2.0), (2, 1.0)], "temperature": [(1, 1.0), (2, 0.5)]}
    figure = training_curves({"lcp": [course, course], "other": [course]})
    named = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["lcp", "other"]
    first, second, other = figure.axes[0].lines
    assert first.get_color() == second.get_color() != other.get_color()


def test_no_line_leads_from_one_window_to_the_next() -> None:
    course = {"loss": [(step, 1.0) for step in range(1, 5)]}
    (axes,) = training_curves({"lcp": [course]}, [2], titled=False).axes
    loss, boundary = axes.lines
    assert [math.isnan(value) for value in loss.get_ydata()] == [False, False, True, False, False]
    assert list(boundary.get_xdata()) == [2.5, 2.5]
    assert axes.get_title(loc="left") == ""


def test_no_state_of_matplotlib_is_touched(drawn) -> None:
    import matplotlib as mpl

    assert mpl.rcParams["axes.spines.top"] is True


def test_strange_labels_and_figures_are_drawn(results, pruned, tmp_path: Path, plan_of) -> None:
    runs = [pruned(f"lcp($\\frac$ {index})", value) for index, value in enumerate([math.inf, 1e6])]
    made = results(*runs, pruned("_x" * 40, math.nan))
    plan = plan_of(made, tmp_path)
    assert len(write_plots(made, plan)) == 3 + 3 + 1


def test_dense_only_has_bars_only(results, tmp_path: Path) -> None:
    made = results()
    made = attrs.evolve(made, runs=made.runs[:1])
    plan = SimpleNamespace(out=tmp_path, runs=())
    assert [path.name for path in write_plots(made, plan)] == ["perplexity.png"]


def test_no_perplexity_has_no_bars(results, pruned, without) -> None:
    made = results(without(pruned("a", 1.0), "perplexity/python-docs"))
    assert perplexity_bars(attrs.evolve(made, runs=made.runs[1:])) is None


def test_panels_are_kinds_of_linears_unless_they_are_many(results) -> None:
    run = results()["lcp"]
    assert [axes.get_title(loc="left") for axes in retained_by_kind(run).axes] == [
        "attn.q_proj, k_proj",
        "mlp.up_proj",
    ]
    many = tuple(
        attrs.evolve(run.layers[0], linear=f"h.0.part{kind}.x", group=f"h.0.part{kind}.x")
        for kind in range(MAX_KINDS + 1)
    )
    (panel,) = retained_by_kind(attrs.evolve(run, layers=many)).axes
    assert panel.get_title(loc="left") == "all linears"
