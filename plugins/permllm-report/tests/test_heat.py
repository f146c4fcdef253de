"""Shades of heat maps."""

from __future__ import annotations

import math

import attrs
from hypothesis import given
from hypothesis import strategies as st
from permllm_report.heat import ERROR, GAINED, RETAINED, Scale, heat_maps, shared_scales
from permllm_report.palette import LEVELS

from permllm.results import LayerReport

REPORT = LayerReport("m.layers.2.mlp.up", "m.layers.2:mlp.up", (4, 8), "2:4", 0.7, 0.75, 0.5, 0.1)


def report(linear: str, **changes: object) -> LayerReport:
    return attrs.evolve(REPORT, linear=linear, **changes)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_levels_follow_the_values(values: list[float]) -> None:
    scale = Scale.of(values)
    assert scale is not None
    levels = [scale.level(value) for value in sorted(values)]
    assert levels == sorted(levels)
    assert all(level in range(LEVELS) for level in levels)


def test_outliers_leave_the_others_their_shades() -> None:
    values = [*(n / 100 for n in range(98)), 1e9, -1e9]
    scale = Scale.of(values)
    assert scale is not None
    assert {scale.level(value) for value in values} == set(range(LEVELS))
    assert (scale.level(1e9), scale.level(math.inf), scale.level(math.nan)) == (7, 7, None)
    assert Scale.of([math.nan, math.inf]) is None


def test_experts_share_a_cell_by_their_size() -> None:
    reports = [
        report("m.layers.0.mlp.experts.0.up", shape=(4, 8), error=0.1),
        report("m.layers.0.mlp.experts.1.up", shape=(12, 8), error=0.5),
        report("m.layers.10.mlp.experts.0.up", error=0.3),
        report("m.layers.2.gate", error=0.2),
    ]
    _, _, error = heat_maps(reports, shared_scales([reports]))
    assert error.measure is ERROR
    assert error.heads == (("mlp.experts.*", 1), ("", 1))
    assert error.columns == ("up", "gate")
    said = [(layer, [cell and cell.said for cell in row]) for layer, row in error.rows]
    assert said == [(0, ["40.0", None]), (2, [None, "20.0"]), (10, ["30.0", None])]


def test_linears_of_one_folder_stand_together() -> None:
    names = ("attn.q", "mlp.up", "attn.o")
    reports = [report(f"m.layers.0.{name}") for name in names]
    retained, *_ = heat_maps(reports, shared_scales([reports]))
    assert retained.measure is RETAINED
    assert (retained.heads, retained.columns) == ((("attn", 2), ("mlp", 1)), ("q", "o", "up"))


def test_the_gain_is_left_out_where_there_is_none() -> None:
    same = [report("m.layers.0.up", retained=0.7)]
    scales = shared_scales([same, [REPORT]])
    assert [map_.measure for map_ in heat_maps(same, scales)] == [RETAINED, ERROR]
    assert [map_.measure for map_ in heat_maps([REPORT], scales)] == [RETAINED, GAINED, ERROR]
    assert heat_maps([], scales) == []


def test_the_legend_parts_the_range() -> None:
    reports = [report(f"m.layers.{n}.up", error=n / 80) for n in range(9)]
    _, _, error = heat_maps(reports, shared_scales([reports]))
    said = [cell.said for cell in error.legend]
    assert said == ["< 1.2", "1.2 –", "2.5 –", "3.8 –", "5.0 –", "6.2 –", "7.5 –", "≥ 8.8"]
    assert [cell.level for cell in error.legend] == list(range(LEVELS))
