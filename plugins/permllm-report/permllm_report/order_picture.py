"""An order of channels as a picture: what went where, and what that did to the groups of M."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from markupsafe import Markup
from torch import Tensor

from permllm_report.axes import Axis, frame
from permllm_report.orders import Order
from permllm_report.svg import Point, dots, line, picture

MOST_DOTS, FEWEST_DOTS = 600, 48
"""Dots of one picture; fewer where a page has many."""

ALL_DOTS = 60_000
"""Dots of a page, about, unless every picture has the fewest already."""

CURVE = 60
"""Points of a curve over groups."""

WIDTH = 330.0


@attrs.frozen
class OrderPicture:
    """An order, drawn.

    Attributes:
        order: what is drawn.
        moves: channel against place.
        balance: the groups' importance before and after; None if it is unknown.
        stride: every how many places there is a dot.
    """

    order: Order
    moves: Markup
    balance: Markup | None
    stride: int


def dots_each(pictures: int) -> int:
    """How many dots each of so many pictures may have."""
    return min(max(ALL_DOTS // max(pictures, 1), FEWEST_DOTS), MOST_DOTS)


def draw_order(order: Order, most_dots: int) -> OrderPicture:
    """Draw an order with at most ``most_dots`` dots."""
    stride = -(-order.channels // most_dots)
    balance = _balance(order) if order.importance is not None else None
    return OrderPicture(order, _moves(order, stride), balance, stride)


def _moves(order: Order, stride: int) -> Markup:
    height = 280.0
    last = max(order.channels - 1, 1)
    across = Axis(0.0, last, 52.0, WIDTH - 16.0)
    up = Axis(0.0, last, height - 42.0, 26.0)
    places = torch.arange(0, order.channels, stride)
    channels = order.permutation[places]
    top = order.top[channels] if order.importance is not None else torch.zeros(len(places)).bool()

    def at(chosen: Tensor) -> list[Point]:
        pairs = zip(places[chosen].tolist(), channels[chosen].tolist(), strict=True)
        return [(across.place(place), up.place(channel)) for place, channel in pairs]

    label = (
        f"Layer {order.layer}, {order.linears}: channel against place. {order.moved} of "
        f"{order.channels} channels have another place."
    )
    return picture(
        WIDTH,
        height,
        label,
        frame(across, up, ("place in the new order", "channel"), (across.ticks(), up.ticks())),
        line([(across.start, up.start), (across.end, up.end)], "unmoved"),
        dots(at(~top), "channel"),
        dots(at(top), "top"),
    )


def _balance(order: Order) -> Markup:
    height = 200.0
    before, after = (sums.sort().values.tolist() for sums in order.sums)
    across = Axis(1.0, max(len(before), 2), 52.0, WIDTH - 16.0)
    up = Axis.around([*before, *after], height - 42.0, 26.0)
    m = order.pattern.m
    label = (
        f"Layer {order.layer}, {order.linears}: importance of the groups of {m}. The least has "
        f"{before[0]:.4g} before and {after[0]:.4g} after; the most {before[-1]:.4g} and "
        f"{after[-1]:.4g}."
    )

    def course(sums: Sequence[float]) -> list[Point]:
        return [(across.place(rank + 1), up.place(sums[rank])) for rank in ranks(len(sums))]

    return picture(
        WIDTH,
        height,
        label,
        frame(
            across,
            up,
            (f"groups of {m}, the least important first", "importance"),
            (across.ticks(), up.ticks()),
        ),
        line(course(before), "before"),
        line(course(after), "after"),
    )


def ranks(count: int) -> list[int]:
    """At most about ``CURVE`` of the numbers below ``count``, first and last among them."""
    stride = -(-count // CURVE)
    return sorted({*range(0, count, stride), count - 1})
