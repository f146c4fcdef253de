"""Labels of runs: the shortest text that tells the cells of a matrix apart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from permllm.pipeline.document import dotted, walk

DENSE = "dense"
"""The label of the unpruned model's run, which no other run may have."""


def single_label(permutation: str, pruner: str) -> str:
    """The label of a pipeline without a matrix: ``lcp``, or ``lcp+sparsegpt``."""
    label = permutation if pruner == "mask" else f"{permutation}+{pruner}"
    return f"permutation={label}" if label == DENSE else label


def combination_labels(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """A label for each combination, the first key slowest; all of them distinct.

    Args:
        axes: dotted keys and their resolved plain values.
    """
    told = {key: values for key, values in axes.items() if len(values) > 1} or dict(axes)
    texts = [_axis_texts(key, values) for key, values in told.items()]
    labels = [" ".join(parts) for parts in itertools.product(*texts)]
    if len(set(labels)) == len(labels) and DENSE not in labels:
        return labels
    texts = [[f"{key}={text}" for text in _axis_texts("", values)] for key, values in told.items()]
    labels = [" ".join(parts) for parts in itertools.product(*texts)]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]


def _axis_texts(key: str, values: Sequence[Any]) -> list[str]:
    """A distinct text for each value; numbers carry the last part of their key."""
    texts = [_short(value) for value in values]
    if key and any(not isinstance(value, (str, dict)) for value in values):
        texts = [f"{key.rpartition('.')[2]}={text}" for text in texts]
    texts = [
        text if texts.count(text) == 1 else _with_options(text, index, texts, values)
        for index, text in enumerate(texts)
    ]
    # What reads alike although it differs, such as 1 and "1".
    return [
        text if texts.count(text) == 1 else _json(value)
        for text, value in zip(texts, values, strict=True)
    ]


def _short(value: Any) -> str:
    """A component's name, a list's items joined by ``+``, anything else as it is."""
    if isinstance(value, dict):
        return str(value.get("name", value.get("source", _json(value))))
    if isinstance(value, list):
        return "+".join(_short(item) for item in value) or "nothing"
    return value if isinstance(value, str) else _json(value)


def _with_options(text: str, index: int, texts: Sequence[str], values: Sequence[Any]) -> str:
    """``name(option=value)`` with the options that differ among the values of this name."""
    namesakes = [_flat(value) for value, other in zip(values, texts, strict=True) if other == text]
    own = _flat(values[index])
    keys = dict.fromkeys(key for flat in namesakes for key in flat)
    differing = [key for key in keys if len({_json(flat.get(key)) for flat in namesakes}) > 1]
    inside = ", ".join(f"{key}={_short(own[key])}" for key in differing if key in own)
    return f"{text}({inside})" if inside else text


def _flat(value: Any) -> dict[str, Any]:
    return {dotted(place): leaf for place, leaf in walk(value)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
