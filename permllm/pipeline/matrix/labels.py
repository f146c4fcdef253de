"""Labels of runs: the shortest text that tells the runs of a matrix apart."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from permllm.pipeline.plain import dotted, identity, walk
from permllm.pipeline.schema import Pipeline
from permllm.results import DENSE

Traits = Mapping[str, Any]
"""What a label may say of a run: dotted keys and their resolved plain values."""

Names = Mapping[str, Mapping[str, Any]]
"""The values that have names of their own: by dotted key, then by name."""

_Values = Mapping[Hashable, Any]
# Distinct plain values by their identities, in order of appearance.


def single_label(pipeline: Pipeline) -> str:
    """The label of a pipeline without a matrix: ``lcp``, or ``lcp+sparsegpt``."""
    permutation, pruner = pipeline.layers.permutation.name, pipeline.layers.pruner.name
    label = permutation if pruner == "mask" else f"{permutation}+{pruner}"
    return f"permutation={label}" if label == DENSE else label


def combination_labels(combinations: Sequence[Traits], names: Names, bare: str) -> list[str]:
    """A label for each combination; all of them distinct.

    Keys whose value is the same everywhere are left out, if there are others.

    Args:
        combinations: what may be said of each; a key that one lacks is not said of it.
        names: named values, which go by their names.
        bare: the label of a combination of which nothing is left to say.
    """
    identities = [{key: identity(item) for key, item in one.items()} for one in combinations]
    values: dict[str, dict[Hashable, Any]] = defaultdict(dict)
    for traits, own in zip(combinations, identities, strict=True):
        for key, value in traits.items():
            values[key].setdefault(own[key], value)
    varied = [
        key
        for key, several in values.items()
        if len(several) > 1 or any(key not in traits for traits in combinations)
    ] or list(values)

    def labels(keyed: bool) -> list[str]:
        texts = {key: _texts(key, values[key], names.get(key, {}), keyed) for key in varied}
        return [
            " ".join(texts[key][own[key]] for key in varied if key in own) or bare
            for own in identities
        ]

    short = labels(keyed=False)
    if _distinct(short) and DENSE not in short:
        return short
    long = labels(keyed=True)
    return long if _distinct(long) else [f"{text} #{i}" for i, text in enumerate(long, start=1)]


def repeat_labels(settings: Sequence[str], repeat: int) -> list[list[str]]:
    """For each setting, the labels of its repeats: ``cp``, ``cp #2``, ``cp #3``; all distinct.

    Args:
        settings: distinct labels.
        repeat: how many repeats each has.
    """
    mark = "#"
    while True:
        labels = [
            [setting, *(f"{setting} {mark}{number}" for number in range(2, repeat + 1))]
            for setting in settings
        ]
        if _distinct([label for repeats in labels for label in repeats]):
            return labels
        mark += "#"


def short_text(value: Any) -> str:
    """A component's name, a list's items joined by ``+``, anything else as it is."""
    if isinstance(value, dict):
        return str(value.get("name", value.get("source", _json(value))))
    if isinstance(value, list):
        return "+".join(short_text(item) for item in value) or "nothing"
    return value if isinstance(value, str) else _json(value)


def _distinct(labels: Sequence[str]) -> bool:
    return len(set(labels)) == len(labels)


def _texts(key: str, values: _Values, names: Mapping[str, Any], keyed: bool) -> dict[Hashable, str]:
    """A distinct text for each value, with its key or without; names stand for their values."""
    named = {identity(value): name for name, value in names.items()}
    others = {own: value for own, value in values.items() if own not in named}
    texts = _value_texts("" if keyed else key, list(others.values()))
    unnamed = {
        own: _json(value) if text in names else text
        for (own, value), text in zip(others.items(), texts, strict=True)
    }
    return {own: f"{key}={text}" if keyed else text for own, text in (named | unnamed).items()}


def _value_texts(key: str, values: Sequence[Any]) -> list[str]:
    """A distinct text for each value; numbers carry the last part of their key."""
    last = key.rpartition(".")[2]
    # A section has no name: the key's stands for it, and its options tell it apart.
    texts = [last if _is_section(value) else short_text(value) for value in values]
    if key and any(not isinstance(value, (str, dict)) for value in values):
        texts = [f"{last}={text}" for text in texts]
    texts = _with_options(texts, values)
    times = Counter(texts)
    # What reads alike although it differs, such as 1 and "1".
    return [
        text if times[text] == 1 else _json(value)
        for text, value in zip(texts, values, strict=True)
    ]


def _with_options(texts: Sequence[str], values: Sequence[Any]) -> list[str]:
    """``name(option=value)`` with the options in which the values of this name differ."""
    flats = [{dotted(place): leaf for place, leaf in walk(value)} for value in values]
    namesakes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for text, flat in zip(texts, flats, strict=True):
        namesakes[text].append(flat)
    differing = {text: _differing(several) for text, several in namesakes.items()}
    options = [
        ", ".join(f"{key}={short_text(flat[key])}" for key in differing[text] if key in flat)
        for text, flat in zip(texts, flats, strict=True)
    ]
    return [f"{text}({own})" if own else text for text, own in zip(texts, options, strict=True)]


def _differing(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that have several values."""
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if len({identity(flat.get(key)) for flat in flats}) > 1]


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and not {"name", "source"} & set(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
