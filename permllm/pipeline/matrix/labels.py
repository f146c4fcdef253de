"""Labels of runs: the shortest text that tells the runs of a matrix apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from permllm.pipeline.document import dotted, walk
from permllm.results import DENSE

Told = Mapping[str, Any]
"""What a label may say of a run: dotted keys and their resolved plain values."""

Names = Mapping[str, Mapping[str, Any]]
"""The values that have names of their own: by dotted key, then by name."""


def single_label(permutation: str, pruner: str) -> str:
    """The label of a pipeline without a matrix: ``lcp``, or ``lcp+sparsegpt``."""
    label = permutation if pruner == "mask" else f"{permutation}+{pruner}"
    return f"permutation={label}" if label == DENSE else label


def combination_labels(combinations: Sequence[Told], names: Names, bare: str) -> list[str]:
    """A label for each combination; all of them distinct.

    Keys whose value is the same everywhere are left out, if there are others.

    Args:
        combinations: what may be said of each; a key that one lacks is not said of it.
        names: named values, which go by their names.
        bare: the label of a combination of which nothing is left to say.
    """
    keys = list(dict.fromkeys(key for told in combinations for key in told))
    varied = [key for key in keys if _varies(key, combinations)] or keys
    texts = {key: _texts(key, _values(key, combinations), names.get(key, {})) for key in varied}
    labels = _joined(combinations, texts, bare)
    if len(set(labels)) == len(labels) and DENSE not in labels:
        return labels
    for key in varied:
        plain = _texts("", _values(key, combinations), names.get(key, {}))
        texts[key] = {value: f"{key}={text}" for value, text in plain.items()}
    labels = _joined(combinations, texts, bare)
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]


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
        if len({label for repeats in labels for label in repeats}) == repeat * len(settings):
            return labels
        mark += "#"


def identity(value: Any) -> str:
    """A text that two plain values share exactly if they are the same, types included."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def short_text(value: Any) -> str:
    """A component's name, a list's items joined by ``+``, anything else as it is."""
    if isinstance(value, dict):
        return str(value.get("name", value.get("source", _json(value))))
    if isinstance(value, list):
        return "+".join(short_text(item) for item in value) or "nothing"
    return value if isinstance(value, str) else _json(value)


def _joined(
    combinations: Sequence[Told], texts: Mapping[str, Mapping[str, str]], bare: str
) -> list[str]:
    return [
        " ".join(said[identity(told[key])] for key, said in texts.items() if key in told) or bare
        for told in combinations
    ]


def _varies(key: str, combinations: Sequence[Told]) -> bool:
    """Whether not all combinations have the same value of a key."""
    everywhere = all(key in told for told in combinations)
    return not everywhere or len(_values(key, combinations)) > 1


def _values(key: str, combinations: Sequence[Told]) -> list[Any]:
    """The distinct values of a key, in order of appearance."""
    found = {identity(told[key]): told[key] for told in combinations if key in told}
    return list(found.values())


def _texts(key: str, values: Sequence[Any], names: Mapping[str, Any]) -> dict[str, str]:
    """A distinct text for each value, by its identity; named values go by their names."""
    named = {identity(value): name for name, value in names.items()}
    others = [value for value in values if identity(value) not in named]
    texts = [
        _json(value) if text in names else text
        for text, value in zip(_value_texts(key, others), others, strict=True)
    ]
    return named | dict(zip(map(identity, others), texts, strict=True))


def _value_texts(key: str, values: Sequence[Any]) -> list[str]:
    """A distinct text for each value; numbers carry the last part of their key."""
    last = key.rpartition(".")[2]
    # A section has no name: the key's stands for it, and its options tell it apart.
    texts = [last if _is_section(value) else short_text(value) for value in values]
    if key and any(not isinstance(value, (str, dict)) for value in values):
        texts = [f"{last}={text}" for text in texts]
    texts = [
        text if texts.count(text) == 1 else _with_options(text, index, texts, values)
        for index, text in enumerate(texts)
    ]
    # What reads alike although it differs, such as 1 and "1".
    return [
        text if texts.count(text) == 1 else _json(value)
        for text, value in zip(texts, values, strict=True)
    ]


def _with_options(text: str, index: int, texts: Sequence[str], values: Sequence[Any]) -> str:
    """``name(option=value)`` with the options that differ among the values of this name."""
    namesakes = [_flat(value) for value, other in zip(values, texts, strict=True) if other == text]
    own = _flat(values[index])
    keys = dict.fromkeys(key for flat in namesakes for key in flat)
    differing = [key for key in keys if len({_json(flat.get(key)) for flat in namesakes}) > 1]
    inside = ", ".join(f"{key}={short_text(own[key])}" for key in differing if key in own)
    return f"{text}({inside})" if inside else text


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and not {"name", "source"} & set(value)


def _flat(value: Any) -> dict[str, Any]:
    return {dotted(place): leaf for place, leaf in walk(value)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
