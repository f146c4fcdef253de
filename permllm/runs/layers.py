"""Figures of linears, gathered by decoder layer and by kind of linear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from permllm.results import LayerReport

Value = Callable[[LayerReport], float]


def mean(reports: Iterable[LayerReport], value: Value) -> float:
    """The mean of a figure over linears, each counted by its number of weights."""
    pairs = [(value(report), report.shape[0] * report.shape[1]) for report in reports]
    return sum(figure * size for figure, size in pairs) / sum(size for _, size in pairs)


def by_layer(reports: Iterable[LayerReport]) -> dict[int, list[LayerReport]]:
    """The reports of each decoder layer, by its number, in the order given.

    The number is the first one in a linear's name. Where names have none, all linears
    are taken for one layer.
    """
    layers: dict[int, list[LayerReport]] = {}
    for report in reports:
        layers.setdefault(layer_of(report.linear), []).append(report)
    return layers


def by_kind(reports: Iterable[LayerReport]) -> dict[str, list[LayerReport]]:
    """The reports of the linears that have the same place in every layer.

    Linears that share a permutation group are one kind:
    ``"self_attn.q_proj, k_proj, v_proj"``.
    """
    members: dict[str, list[str]] = {}
    groups: dict[str, list[LayerReport]] = {}
    for report in reports:
        group = place_in_layer(report.group)
        groups.setdefault(group, []).append(report)
        name = place_in_layer(report.linear)
        if name not in members.setdefault(group, []):
            members[group].append(name)
    kinds: dict[str, list[LayerReport]] = {}
    for group, values in groups.items():
        kinds.setdefault(joined(members[group]), []).extend(values)
    return kinds


def layer_of(linear: str) -> int:
    """The decoder layer's number in a linear's name.

    >>> layer_of("model.layers.3.mlp.experts.0.up_proj")
    3
    """
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", linear)
    return int(number[1]) if number else 0


def place_in_layer(name: str) -> str:
    """A name without what stands up to the layer's number, experts all alike.

    >>> place_in_layer("model.layers.3.self_attn.q_proj"), place_in_layer("lm_head")
    ('self_attn.q_proj', 'lm_head')
    >>> place_in_layer("model.layers.3.mlp.experts.7.up_proj")
    'mlp.experts.*.up_proj'
    """
    rest = re.sub(r"^.*?(?:^|\.)\d+\.", "", name, count=1)
    return re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=\[)\d+(?=\])", "*", rest)


def joined(names: list[str]) -> str:
    """Names of one folder with the folder said once.

    >>> joined(["mlp.gate_proj", "mlp.up_proj"])
    'mlp.gate_proj, up_proj'
    """
    first = names[0]
    folder = first.rpartition(".")[0]
    rest = [name.removeprefix(f"{folder}.") if folder else name for name in names[1:]]
    return ", ".join([first, *rest])
