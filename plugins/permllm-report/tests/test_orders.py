"""Orders in figures and pictures, against counting by hand."""

from __future__ import annotations

import re
from math import isnan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from permllm_report.order_picture import dots_each, draw_order, order_figure
from permllm_report.orders import Order, chosen_layers, read_orders

from permllm.core.patterns import Pattern
from permllm.reporting import read_record

orders = st.integers(1, 6).flatmap(
    lambda groups: st.tuples(
        st.permutations(range(4 * groups)),
        st.lists(
            st.floats(0.125, 8, width=32), min_size=4 * groups, max_size=4 * groups, unique=True
        ),
    )
)


def order(permutation: list[int], importance: list[float] | None) -> Order:
    known = None if importance is None else torch.tensor(importance)
    return Order(3, "mlp.down_proj", 1, Pattern(2, 4), torch.tensor(permutation), known)


@given(orders)
def test_figures_of_an_order(drawn: tuple[list[int], list[float]]) -> None:
    permutation, importance = drawn
    found = order(permutation, importance)
    places = range(len(permutation))
    assert found.moved == sum(permutation[place] != place for place in places)
    assert found.regrouped == sum(permutation[place] // 4 != place // 4 for place in places)
    best = set(sorted(places, key=lambda channel: -importance[channel])[: len(permutation) // 4])
    assert set(found.top.nonzero().flatten().tolist()) == best

    def without(at: list[int]) -> int:
        return sum(not best & set(at[start : start + 4]) for start in range(0, len(at), 4))

    assert found.without_top == (without(list(places)), without(permutation))
    before, after = found.sums
    assert before[0].item() == pytest.approx(sum(importance[:4]))
    assert after[0].item() == pytest.approx(sum(importance[channel] for channel in permutation[:4]))


def dots(figure, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == label]
    return [point for point in zip(*line.get_data(), strict=True) if not isnan(point[0])][::2]


def test_every_channel_is_a_dot_at_its_place() -> None:
    permutation = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    made = order(permutation, [float(16 - channel) for channel in range(16)])
    figure = order_figure(made, 1)
    top = dots(figure, "one of the most important")
    assert sorted(top + dots(figure, "a channel")) == list(enumerate(permutation))
    assert sorted(channel for _, channel in top) == [0, 1, 2, 3]
    before, after = figure.axes[1].lines
    sums = [line.get_ydata().tolist() for line in (before, after)]
    assert sums == [values.sort().values.tolist() for values in made.sums]


def test_wide_groups_have_a_share_of_their_dots() -> None:
    made = order(list(range(4096)), None)
    drawn = draw_order(made, 100, "a")
    assert drawn.stride == 41
    assert len(dots(order_figure(made, drawn.stride), "a channel")) == 100
    assert max(path.count("h0") for path in re.findall(' d="([^"]*)"', drawn.picture)) == 100
    assert "Importance" not in drawn.picture


@given(st.integers(0, 100_000))
def test_more_pictures_have_fewer_dots(pictures: int) -> None:
    assert 48 <= dots_each(pictures + 1) <= dots_each(pictures) <= 600


def test_orders_are_read_from_the_windows(study, tmp_path: Path) -> None:
    study(tmp_path)
    record = read_record(tmp_path)
    layers = chosen_layers(record.pruned, None)
    assert layers == (0, 2, 3)
    none, cp = (read_orders(run, layers) for run in record.pruned[:2])
    assert [found.moved for found in none] == [0] * 6
    assert [(found.layer, found.linears) for found in cp] == [
        (layer, place)
        for layer in layers
        for place in ("self_attn.q_proj, k_proj", "mlp.down_proj")
    ]
    assert all(found.moved > 16 and found.importance is not None for found in cp)


def test_experts_are_drawn_once(study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linears = {f"mlp.experts.{n}.up_proj": f"mlp.experts.{n}.up_proj" for n in range(5)}
    monkeypatch.setitem(study.__globals__, "LINEARS", linears)
    study(tmp_path)
    found = read_orders(read_record(tmp_path).pruned[1], (1,))
    assert [(order.linears, order.alike) for order in found] == [("mlp.experts.*.up_proj", 5)]
