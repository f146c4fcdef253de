"""Whether runs of several folders may be compared: what differs besides their settings."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from permllm.datasets.local_files import label_of
from permllm.errors import UserError
from permllm.pipeline.dotted_keys import MATRIX, REPEAT, by_depth, parts_of, value_of
from permllm.pipeline.plain import dotted, identity, walk
from permllm.runs.folder import PIPELINE, RESULTS
from permllm.runs.reading import Selection

VERSIONS = ("permllm", "torch", "transformers")
"""The packages whose versions figures depend on."""

CALIBRATION = ("dataset", "sequences", "length", "held_out", "seed")
"""The keys of ``calibration`` that say which text it is."""

OWN_FIGURES = ("retained", "sparsity", "left_dense")
"""Figures of the runner itself, which no evaluator's options change."""

Facts = dict[str, Any]
"""What figures depend on, by what it is called."""


@attrs.frozen
class Difference:
    """Something that is not the same in all folders.

    Attributes:
        what: such as ``pattern`` or ``perplexity/text: length``.
        values: what it is in each folder, by the folder's name.
    """

    what: str
    values: dict[str, str]

    def message(self) -> str:
        """``pattern: 2:4 in a and b; 4:8 in c``."""
        folders: dict[str, list[str]] = {}
        for folder, value in self.values.items():
            folders.setdefault(value, []).append(folder)
        parts = [f"{value} in {' and '.join(names)}" for value, names in folders.items()]
        return f"{self.what}: {'; '.join(parts)}"


def differences(selections: Sequence[Selection]) -> list[Difference]:
    """What keeps the rows of some folders from being comparable.

    What the matrix of one folder varies is its subject and no difference; folders are
    compared by all that their chosen runs have.
    """
    gaps = _compared({one.folder.name: facts(one) for one in selections})
    texts: dict[Hashable, Facts] = {}
    for one in selections:
        fingerprint = one.folder.environment.get("calibration_fingerprint")
        if fingerprint and one.pruned:
            # With other options, another text is no news.
            key = identity([calibration(one, key) for key in CALIBRATION])
            texts.setdefault(key, {})[one.folder.name] = {"calibration text": fingerprint[:12]}
    return [*gaps, *(gap for same in texts.values() for gap in _compared(same))]


def facts(selection: Selection) -> Facts:
    """What the chosen runs of a folder depend on, as far as the folder says so."""
    folder = selection.folder
    environment = folder.environment
    known: Facts = {}
    if fingerprint := environment.get("model_fingerprint"):
        known["model"] = f"{environment.get('model', 'a model')} ({fingerprint[:12]})"
    if "dtype" in folder.pipeline:
        known["dtype"] = folder.pipeline["dtype"]
    if selection.pruned and folder.pipeline:
        known["pattern"] = _several(selection, "pattern")
        known |= {f"calibration.{key}": calibration(selection, key) for key in CALIBRATION}
    for figure in dict.fromkeys(name for run in selection.runs for name in run.figures):
        if figure not in OWN_FIGURES:
            options = evaluation(selection, figure)
            known |= {f"{figure}: {dotted(place)}": leaf for place, leaf in walk(options) if place}
    versions = environment.get("versions", {})
    known |= {f"{name}'s version": versions[name] for name in VERSIONS if name in versions}
    if "threads" in environment:
        known["threads"] = environment["threads"]
    if "cuda_device" in environment:
        known["CUDA device"] = environment["cuda_device"] or "none"
    return known


def calibration(selection: Selection, key: str) -> Any:
    """A key of the runs' ``calibration``; the file's own seed where repeats derive theirs."""
    pipeline = selection.folder.pipeline
    if key == "seed" and (pipeline.get(MATRIX) or {}).get(REPEAT, 1) > 1:
        return value_of(pipeline, "calibration.seed")
    return _several(selection, f"calibration.{key}")


def evaluation(selection: Selection, figure: str) -> Any:
    """The options of the evaluator that a figure is from; a list if several may be it."""
    evaluators = selection.folder.pipeline.get("evaluate") or []
    prefix, _, rest = figure.partition("/")
    measured = {name.partition("/")[0] for run in selection.runs for name in run.figures}
    named = [one for one in evaluators if _name(one) == prefix]
    # An evaluator may call its figures otherwise than itself.
    others = [one for one in evaluators if _name(one) not in measured]
    candidates = named or others
    labelled = [one for one in candidates if rest.partition("/")[0] in _labels(one)]
    chosen = labelled or candidates
    return chosen[0] if len(chosen) == 1 else chosen


def with_options(pipeline: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a pipeline with the matrix' values of a run in place.

    Raises:
        UserError: the pipeline has no place for one, since a file of the run is damaged.
    """
    whole: Any = copy.deepcopy(dict(pipeline))
    for key in by_depth(options):
        try:
            *way, last = parts_of(key)
            inner = whole
            for step in way:
                inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
            inner[last] = options[key]
        except (TypeError, IndexError, ValueError) as error:
            raise UserError(
                f"a run set the option '{key[:200]}', for which its pipeline has no place: "
                f"{RESULTS} or {PIPELINE} is damaged"
            ) from error
    return dict(whole)


def _compared(folders: Mapping[str, Facts]) -> list[Difference]:
    """The facts that not all folders that have them agree on."""
    gaps = []
    for what in dict.fromkeys(what for facts in folders.values() for what in facts):
        values = {name: facts[what] for name, facts in folders.items() if what in facts}
        if len(set(map(identity, values.values()))) > 1:
            gaps.append(Difference(what, {name: _text(value) for name, value in values.items()}))
    return gaps


def _several(selection: Selection, key: str) -> Any:
    """The value of a key that all chosen runs have, or the list of their values."""
    pipeline = selection.folder.pipeline
    values = [value_of(with_options(pipeline, run.options), key) for run in selection.pruned]
    distinct = list({identity(value): value for value in values}.values())
    return distinct[0] if len(distinct) == 1 else distinct


def _name(evaluator: Mapping[str, Any]) -> str:
    return str(evaluator.get("name", "")).rpartition(":")[2]


def _labels(options: Any) -> set[str]:
    """What figures may be called after: the datasets and files in an evaluator's options."""
    labels = set()
    for place, leaf in walk(options):
        if not isinstance(leaf, str):
            continue
        if place[-1:] == ("path",):
            labels.add(label_of(Path(leaf)))
        elif place[-1:] in (("id",), ("name",)):
            labels.add(leaf.rpartition("/")[2])
    return labels


def _text(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{dotted(place)}={_text(leaf)}" for place, leaf in walk(value))
        return inside or "nothing"
    if isinstance(value, list):
        return " and ".join(map(_text, value)) or "nothing"
    return "none" if value is None else str(value)
