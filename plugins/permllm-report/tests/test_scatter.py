"""Perplexity against time: what is drawn where."""

from __future__ import annotations

import math

import pytest
from permllm_report.scatter import NAMED, SHAPES, Spot, cost_figure, frontier

SPOTS = [
    Spot("none", 2, ((2.0, 100.0),)),
    Spot("cp", 3, ((10.0, 80.0), (12.0, 84.0))),
    Spot("slow", 4, ((50.0, 90.0),)),
    Spot("lcp", 5, ((300.0, 50.0),)),
]


def lines(spots: list[Spot], dense: float = 20.0) -> dict[str, list[tuple[float, float]]]:
    (axes,) = cost_figure(spots, dense, SHAPES["wide"]).axes
    return {str(line.get_label()): [*zip(*line.get_data(), strict=True)] for line in axes.lines}


def test_the_best_repeats_and_others_are_marked() -> None:
    assert [spot.label for spot in frontier(SPOTS)] == ["none", "cp", "lcp"]
    drawn = lines(SPOTS)
    assert drawn["no other is both quicker and better"] == [(2, 100), (11, 82), (300, 50)]
    assert drawn["the others"] == [(50, 90)]
    assert drawn["a repeat; marks are means"] == [(10, 80), (12, 84)]
    assert drawn["dense: 20.00"] == [(0, 20), (1, 20)]
    assert "the others" not in lines(SPOTS[:2], math.nan)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_of_neighbours_are_apart(shape: str) -> None:
    near = [Spot(f"run {n}", n, ((100.0 + n, 50.0),)) for n in range(5)]
    figure = cost_figure([*near, SPOTS[0]], 20.0, SHAPES[shape])
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == [
        "none",
        *(spot.label for spot in near),
    ]
    boxes = [text.get_window_extent() for text in axes.texts]
    for index, box in enumerate(boxes):
        assert not box.shrunk(0.95, 0.8).count_overlaps(boxes[:index])
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1


def test_many_settings_are_numbered() -> None:
    many = [Spot(f"run {n}", n + 2, ((n + 1.0, 50.0 - n),)) for n in range(NAMED + 1)]
    (axes,) = cost_figure(many, 20.0, SHAPES["narrow"]).axes
    assert {text.get_text() for text in axes.texts} == {str(spot.number) for spot in many}


def test_axes_suit_what_is_on_them() -> None:
    (axes,) = cost_figure(SPOTS, 20.0, SHAPES["wide"]).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    figure = cost_figure(SPOTS, 2.0, SHAPES["wide"])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    times = [text.get_text() for text in axes.get_xticklabels()]
    assert times == ["2 s", "10 s", "30 s", "2 min"]
    assert "10" in [text.get_text() for text in axes.get_yticklabels()]
    # Nothing took any time: no logarithm of that.
    (axes,) = cost_figure([Spot("a", 2, ((0.0, 9.0),)), SPOTS[0]], 2.0, SHAPES["wide"]).axes
    assert axes.get_xscale() == "linear"
