"""An order of channels as a picture: what went where, and what that did to the groups of M."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import torch
from markupsafe import Markup
from torch import Tensor

from permllm.reporting import COLOURS, GREY
from permllm_report.inline import inline
from permllm_report.orders import Order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DOTS, FEWEST_DOTS = 600, 48
"""Dots of one picture; fewer where a page has many."""

ALL_DOTS = 60_000
"""Dots of a page, about, unless every picture has the fewest already."""

CURVE = 60
"""Points of a curve over groups."""


@attrs.frozen
class OrderPicture:
    """An order, drawn.

    Attributes:
        order: what is drawn.
        picture: channel against place and, where it is known, the groups' importance.
        stride: every how many places there is a dot.
    """

    order: Order
    picture: Markup
    stride: int


def dots_each(pictures: int) -> int:
    """How many dots each of so many pictures may have."""
    return min(max(ALL_DOTS // max(pictures, 1), FEWEST_DOTS), MOST_DOTS)


def draw_order(order: Order, most_dots: int, name: str) -> OrderPicture:
    """Draw an order with at most ``most_dots`` dots, as a picture that has a name."""
    stride = -(-order.channels // most_dots)
    picture = inline(partial(order_figure, order, stride), name, _in_words(order))
    return OrderPicture(order, picture, stride)


def order_figure(order: Order, stride: int) -> Figure:
    """Which channel every ``stride``-th place holds and, below, the groups' importance."""
    from matplotlib.figure import Figure

    parts = 1 if order.importance is None else 2
    figure = Figure(figsize=(4.6, 4.1 if parts == 1 else 7.2))
    # To measure the texts would take longer than to draw them.
    room = {"left": 0.18, "right": 0.97, "hspace": 0.45, "height_ratios": (3, 2)[:parts]}
    ends = {"bottom": 0.17 / parts, "top": 1 - 0.1 / parts}
    axes = figure.subplots(parts, 1, squeeze=False, gridspec_kw=room | ends)[:, 0]
    _draw_moves(axes[0], order, stride)
    if order.importance is not None:
        _draw_balance(axes[1], order)
    return figure


def _draw_moves(axes: Axes, order: Order, stride: int) -> None:
    last = max(order.channels - 1, 1)
    places = torch.arange(0, order.channels, stride)
    channels = order.permutation[places]
    top = order.top[channels] if order.importance is not None else torch.zeros(len(places)).bool()
    axes.plot([0, last], [0, last], color=GREY, linestyle=":", linewidth=1)
    _dots(axes, places[~top], channels[~top], COLOURS[0], 2.4, "a channel")
    _dots(axes, places[top], channels[top], COLOURS[1], 4.6, "one of the most important")
    axes.set(xlim=(0, last), ylim=(0, last), xlabel="place in the new order", ylabel="channel")
    _finish(axes, handle=0)


def _draw_balance(axes: Axes, order: Order) -> None:
    before, after = (sums.sort().values for sums in order.sums)
    ranks = torch.linspace(0, len(before) - 1, min(len(before), CURVE)).round().long()
    axes.plot(1 + ranks, before[ranks], color=GREY, linestyle="--", label="before")
    axes.plot(1 + ranks, after[ranks], color=COLOURS[0], label="after")
    axes.set(xlabel=f"groups of {order.pattern.m}, the least important first", ylabel="importance")
    _finish(axes, handle=1.6)


def _finish(axes: Axes, handle: float) -> None:
    """Few ticks, and a legend above with lines of a length."""
    axes.locator_params(nbins=5)
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.99), ncols=2, handlelength=handle)


def _dots(
    axes: Axes, places: Tensor, channels: Tensor, colour: str, size: float, label: str
) -> None:
    """A dot at each point, all of them one path: markers would take four times the bytes."""
    gap = torch.full((len(places),), torch.nan)
    across, up = (torch.stack([at, at, gap], 1).flatten() for at in (places, channels))
    (line,) = axes.plot(across, up, color=colour, linewidth=size, label=label,
                        solid_capstyle="round", clip_on=False)  # fmt: skip
    # Its parts have no length, and would be left out.
    line.get_path().should_simplify = False


def _in_words(order: Order) -> str:
    label = (
        f"Layer {order.layer}, {order.linears}: channel against place. {order.moved} of "
        f"{order.channels} channels have another place."
    )
    if order.importance is None:
        return label
    before, after = order.sums
    return (
        f"{label} Importance of the groups of {order.pattern.m}: the least has "
        f"{before.min():.4g} before and {after.min():.4g} after; the most {before.max():.4g} and "
        f"{after.max():.4g}."
    )
