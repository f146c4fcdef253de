"""Statistics of the inputs of a window's permutation groups."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS

Sums = dict[str, dict[str, Tensor]]
"""By group, by statistic."""


def add_sums(total: Sums, share: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Add one batch's sums to ``total``, in place."""
    for group, sums in share.items():
        kept = total.setdefault(group, {})
        for name, value in sums.items():
            kept[name] = kept[name] + value if name in kept else value


def fill_unseen(sums: Sums) -> list[str]:
    """Give groups that no token reached the statistics of white noise, in place.

    Their scores then rest on the weights alone. Experts that no calibration token is
    routed to are such groups.

    Returns:
        the names of these groups.
    """
    unseen = [name for name, values in sums.items() if float(values[TOKENS.name]) == 0]
    for name in unseen:
        values = sums[name]
        values[SQUARE_SUM.name] = torch.ones_like(values[SQUARE_SUM.name])
        if GRAM.name in values:
            values[GRAM.name] = torch.eye(len(values[GRAM.name])).to(values[GRAM.name])
    return unseen
