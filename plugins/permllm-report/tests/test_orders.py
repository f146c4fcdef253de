"""Orders in figures and pictures, against counting by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from permllm_report.order_picture import draw_order
from permllm_report.orders import Order, chosen_layers, read_orders
from permllm_report.record import read_record

from permllm.core.patterns import Pattern

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


def dots(picture: str, class_: str) -> list[tuple[float, float]]:
    paths = re.findall(rf'<path d="([^"]*)" class="dots {class_}"/>', picture)
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"M(\S+) (\S+)h0", path)]


def test_every_channel_is_a_dot_at_its_place() -> None:
    permutation = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = draw_order(order(permutation, [float(16 - channel) for channel in range(16)]), 600)
    found = [*dots(drawn.moves, "channel"), *dots(drawn.moves, "top")]
    across = (330 - 16 - 52) / 15
    up = (280 - 42 - 26) / 15
    wanted = [(52 + place * across, 238 - permutation[place] * up) for place in range(16)]
    assert sorted(found) == [pytest.approx(point, abs=0.06) for point in sorted(wanted)]
    assert len(dots(drawn.moves, "top")) == 4
    assert drawn.stride == 1


def test_wide_groups_have_a_share_of_their_dots() -> None:
    drawn = draw_order(order(list(range(4096)), None), 100)
    assert drawn.stride == 41
    assert len(dots(drawn.moves, "channel")) == 100
    assert drawn.balance is None


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
