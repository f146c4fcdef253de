"""The matrix: its combinations, their labels, and mistakes at their own places."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.fields.reading import Reader
from permllm.pipeline.matrix.cells import Cell
from permllm.pipeline.reading import Study, dump_yaml, read_mapping, resolved, study_of_text
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry


@pytest.fixture
def cells(study: Any) -> Any:
    def expanded(text: str, *settings: str, **options: bool) -> tuple[Cell, ...]:
        cells: tuple[Cell, ...] = study(text, *settings, **options).cells
        return cells

    return expanded


def labels(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.label for cell in cells]


def test_values_take_their_places(cells: Any) -> None:
    none, cp, lcp = cells(
        "matrix: {layers.permutation: [none, cp, {name: lcp, preset: paper, block: 32}]}"
    )
    assert labels((none, cp, lcp)) == ["none", "cp", "lcp"]
    assert none.pipeline.layers.permutation.name == "none"
    assert (lcp.pipeline.layers.permutation.block, lcp.pipeline.layers.permutation.passes) == (
        32,
        50,
    )
    assert lcp.pipeline.matrix is None
    assert lcp.options["layers.permutation"]["block"] == 32


def test_the_first_key_is_slowest(cells: Any) -> None:
    runs = cells("matrix: {pattern: [2:4, 4:8], layers.permutation: [cp, lcp]}")
    assert labels(runs) == ["2:4 cp", "2:4 lcp", "4:8 cp", "4:8 lcp"]
    assert [str(cell.pipeline.pattern) for cell in runs] == ["2:4", "2:4", "4:8", "4:8"]


def test_a_single_value_is_not_said(cells: Any) -> None:
    runs = cells("matrix: {pattern: [2:4], layers.permutation: [cp, lcp]}")
    assert labels(runs) == ["cp", "lcp"]
    assert labels(cells("matrix: {pattern: [4:8]}")) == ["4:8"]


def test_options_tell_namesakes_apart(cells: Any) -> None:
    runs = cells("matrix: {layers.permutation: [lcp, {name: lcp, block: 32}, none]}")
    assert labels(runs) == ["lcp(block=64)", "lcp(block=32)", "none"]


def test_numbers_carry_their_key(cells: Any) -> None:
    runs = cells("matrix: {layers.permutation.block: [32, 64], layers.window: [1, all]}")
    assert labels(runs)[:2] == ["block=32 window=1", "block=32 window=all"]
    assert runs[2].pipeline.layers.permutation.block == 64


def test_no_label_is_dense(cells: Any) -> None:
    runs = cells("matrix: {layers.inputs: [pruned, dense]}")
    assert labels(runs) == ["layers.inputs=pruned", "layers.inputs=dense"]


def test_without_a_matrix_the_learner_is_the_label(cells: Any) -> None:
    assert labels(cells("layers: {permutation: cp}")) == ["cp"]
    assert labels(cells("layers: {permutation: cp, pruner: sparsegpt}")) == ["cp+sparsegpt"]


def test_a_required_key_may_come_from_the_matrix(cells: Any) -> None:
    text = "model: {source: hub, id: x}\nmatrix: {pattern: [1:4, 2:4]}\n"
    runs = cells(text, whole=True)
    assert [str(cell.pipeline.pattern) for cell in runs] == ["1:4", "2:4"]


def test_names_are_the_labels(cells: Any) -> None:
    plain, searched = cells(
        "matrix: {layers.permutation: {plain: none, searched: {name: cp, rounds: 50}}}"
    )
    assert labels((plain, searched)) == ["plain", "searched"]
    assert plain.pipeline.layers.permutation.name == "none"
    assert searched.pipeline.layers.permutation.rounds == 50
    assert searched.options["layers.permutation"]["rounds"] == 50
    runs = cells("matrix: {layers.permutation.block: {small: 8, large: 64}, seed: [1, 2]}")
    assert labels(runs)[:3] == ["small seed=1", "small seed=2", "large seed=1"]


def test_nested_keys_apply_from_the_outside_in(cells: Any) -> None:
    runs = cells(
        "matrix: {layers.permutation.block: [32, 16], layers: [{window: 1}, {window: 2}], "
        "layers.permutation: [lcp, {name: lcp, passes: 9}]}"
    )
    assert len(runs) == 8
    assert labels(runs)[1] == "block=32 layers(window=1) lcp(passes=9)"
    last = runs[-1].pipeline.layers
    assert (last.window, last.permutation.block, last.permutation.passes) == (2, 16, 9)
    # What a key comes to together with the keys below it.
    assert runs[-1].options["layers.permutation"]["block"] == 16


def test_exclude_matches_by_name_and_by_meaning(cells: Any) -> None:
    text = (
        "matrix:\n"
        "  layers.permutation: {plain: none, cp: {name: cp, rounds: 9}, short: cp}\n"
        "  layers.metric: [wanda, ria]\n"
        "  exclude:\n"
        "    - {layers.permutation: {name: none}, layers.metric: {name: ria, exponent: 0.5}}\n"
        "    - {layers.permutation: cp}\n"
    )
    # 'cp' is the name of the value with nine rounds before it is that of a component.
    assert labels(cells(text)) == ["plain wanda", "short wanda", "short ria"]


def test_excluded_combinations_may_be_impossible(cells: Any) -> None:
    text = (
        "matrix:\n"
        "  layers.permutation: [none, lcp]\n"
        "  layers.permutation.block: [32, 16]\n"
        "  exclude: [{layers.permutation: none}]\n"
    )
    runs = cells(text)
    assert labels(runs) == ["block=32", "block=16"]
    assert [cell.pipeline.layers.permutation.block for cell in runs] == [32, 16]


def test_include_is_beside_the_product(cells: Any) -> None:
    runs = cells(
        "layers: {metric: ria, permutation: lcp}\n"
        "matrix:\n"
        "  layers.permutation.block: [16, 32]\n"
        "  include:\n"
        "    - {layers.permutation: none}\n"
        "    - {calibration.sequences: 3, layers.permutation.block: 8}\n"
        "    - {layers.permutation.rounds: 1, layers.permutation: cp}\n"
    )
    assert labels(runs) == ["block=16", "block=32", "none", "block=8 sequences=3", "cp rounds=1"]
    assert all(cell.pipeline.layers.metric.name == "ria" for cell in runs)
    assert runs[2].pipeline.layers.permutation.name == "none"
    assert runs[3].pipeline.calibration.sequences == 3
    assert runs[4].pipeline.layers.permutation.rounds == 1
    # Every run has every key that some run has from the matrix, where there is such a key.
    assert runs[0].options["calibration.sequences"] == 16
    assert runs[0].options["layers.permutation"]["block"] == 16
    assert "layers.permutation.block" not in runs[2].options


def test_what_an_included_run_leaves_open_is_as_in_the_file(cells: Any) -> None:
    runs = cells("matrix: {layers.permutation: [none, cp], include: [{layers.metric: ria}]}")
    # The file has no permutation outside the matrix, so that is the default.
    assert labels(runs) == ["none", "cp", "lcp ria"]
    runs = cells(
        "model: {source: hub, id: x}\n"
        "matrix: {pattern: [1:4, 2:4], include: [{layers.metric: ria}]}",
        whole=True,
    )
    assert labels(runs) == ["1:4", "2:4", "1:4 ria"]


def test_include_takes_named_values(cells: Any) -> None:
    runs = cells(
        "layers: {permutation: none}\n"
        "matrix: {layers.metric: [wanda], layers.permutation: {cp: {name: cp, rounds: 9}}, "
        "include: [{layers.permutation: cp, layers.metric: ria}, {layers.permutation: lcp}]}"
    )
    assert labels(runs) == ["wanda cp", "ria cp", "wanda lcp"]
    assert [getattr(cell.pipeline.layers.permutation, "rounds", 0) for cell in runs] == [9, 9, 0]


def test_a_list_of_runs_without_a_product(cells: Any) -> None:
    runs = cells(
        "matrix: {include: [{layers.permutation: none}, {layers.metric: ria, pattern: 4:8}, {}]}"
    )
    assert labels(runs) == ["none", "ria 4:8", "lcp"]


def test_repeats_differ_in_their_seeds_alone(cells: Any) -> None:
    runs = cells(
        "seed: 5\ncalibration: {seed: 9}\nmatrix: {layers.permutation: [none, cp], repeat: 3}"
    )
    assert labels(runs) == ["none", "none #2", "none #3", "cp", "cp #2", "cp #3"]
    assert [cell.setting for cell in runs] == ["none"] * 3 + ["cp"] * 3
    assert [cell.repeat for cell in runs] == [0, 1, 2] * 2
    seeds = [(cell.pipeline.seed, cell.pipeline.calibration.seed) for cell in runs]
    assert seeds[0] == (5, 9)
    assert seeds[:3] == seeds[3:]
    assert len({seed for pair in seeds for seed in pair}) == 6
    assert [(c.options["seed"], c.options["calibration.seed"]) for c in runs] == seeds


def test_a_pipeline_repeated_as_it_is(cells: Any) -> None:
    assert labels(cells("matrix: {repeat: 2}")) == ["lcp", "lcp #2"]
    (once,) = cells("matrix: {repeat: 1}")
    assert (once.label, once.options) == ("lcp", {})


def test_each_run_is_made_once(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    fields = Reader.fields

    def counted(self: Reader, cls: type, *arguments: Any) -> Any:
        made.append(cls)
        return fields(self, cls, *arguments)

    monkeypatch.setattr(Reader, "fields", counted)
    assert len(study("matrix: {seed: [1, 2, 3]}").cells) == 3
    # The file and each run, which is the file with one value.
    assert made.count(Pipeline) == 1 + 3
    # The permutation is not among what is varied.
    assert [cls.__name__ for cls in made].count("Lcp") == 1
    made.clear()
    axes = (
        "layers.window: [1, 2, 3], layers.metric: [wanda, ria, {name: ria, exponent: 2}], repeat: 5"
    )
    assert len(study(f"matrix: {{{axes}}}").cells) == 45
    # Each value alone is compared with others.
    assert made.count(Pipeline) == 1 + 3 + 3 + 9


ORDERS = {"plain": "none", "cp": {"name": "cp", "rounds": 9}, "lcp": "lcp"}
VALUES: dict[str, list[Any]] = {
    "pattern": ["1:4", "2:4", "4:8"],
    "layers.permutation": list(ORDERS),
    "layers.metric": ["wanda", {"name": "ria", "exponent": 2}],
    "layers.window": [1, 2, "all"],
}
"""Values of axes; the permutations go by their names."""


@st.composite
def matrices(draw: Any) -> dict[str, Any]:
    """A matrix of two axes or more, without mistakes."""
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=2, unique=True))
    axes = {key: draw(st.permutations(VALUES[key]))[: draw(st.integers(1, 3))] for key in keys}
    some = st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in axes.items()})
    exclude = draw(st.lists(some.filter(bool), max_size=3))
    other = st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}
    )
    include = draw(st.lists(other, max_size=3))
    return {"axes": axes, "exclude": exclude, "include": include, "repeat": draw(st.integers(1, 3))}


def agrees(combination: dict[str, Any], entry: dict[str, Any]) -> bool:
    return all(combination[key] == value for key, value in entry.items())


def brute_force(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    """The combinations over all keys of ``VALUES``; entries that would be mistakes are dropped."""
    axes = drawn["axes"]
    file = {"pattern": "2:4", "layers.permutation": "lcp", "layers.metric": "wanda",
            "layers.window": "all"}  # fmt: skip
    product = [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
    kept, exclude = product, []
    for entry in drawn["exclude"]:
        fewer = [combination for combination in kept if not agrees(combination, entry)]
        if len(fewer) < len(kept):
            kept, exclude = fewer, [*exclude, entry]
    runs, include = [file | combination for combination in kept], []
    for entry in drawn["include"]:
        whole = file | entry
        # A name stands for a value only where its axis has it, else for a component.
        nameless = entry.get("layers.permutation") in ("plain", "cp") and entry[
            "layers.permutation"
        ] not in axes.get("layers.permutation", ())
        if not nameless and whole not in runs and not any(agrees(whole, e) for e in exclude):
            runs, include = [*runs, whole], [*include, entry]
    drawn["exclude"], drawn["include"] = exclude, include
    return runs


@settings(max_examples=25)
@given(drawn=matrices())
def test_cells_are_the_product_less_the_excluded_and_the_included(
    toys: Registry, drawn: dict[str, Any]
) -> None:
    expected = brute_force(drawn)
    if not expected:
        return
    text: dict[str, Any] = {
        key: {name: ORDERS[name] for name in values} if key == "layers.permutation" else values
        for key, values in drawn["axes"].items()
    }
    text |= {key: drawn[key] for key in ("include", "exclude") if drawn[key]}
    text["repeat"] = drawn["repeat"]
    data = {"model": {"source": "hub", "id": "x"}, "pattern": "2:4", "matrix": text}
    study = study_of_text(dump_yaml(data), "drawn.yaml", Path("/base"), toys)
    cells = study.cells

    firsts = [cell for cell in cells if cell.repeat == 0]
    assert [meaning(cell) for cell in firsts] == [meant(combination) for combination in expected]
    assert len({cell.label for cell in cells}) == len(cells) == len(expected) * drawn["repeat"]
    assert len({cell.setting for cell in cells}) == len(expected)
    assert "dense" not in {cell.label for cell in cells}
    # Repeats of all settings have the same seeds, and no two repeats share one.
    seeds = {cell.repeat: (cell.pipeline.seed, cell.pipeline.calibration.seed) for cell in cells}
    assert seeds[0] == (0, 0)
    assert len(set(seeds.values())) == drawn["repeat"]
    for cell in cells:
        assert (cell.pipeline.seed, cell.pipeline.calibration.seed) == seeds[cell.repeat]
    # What a run's folder keeps is the same study.
    assert reread(study, toys) == study
    assert read_mapping(data, toys, name="drawn") == study.pipeline


def reread(study: Study, registry: Registry) -> Study:
    """What a run's folder keeps of a study, read again elsewhere."""
    text = dump_yaml(resolved(study.pipeline))
    return study_of_text(text, "kept.yaml", Path("/else"), registry)


def meaning(cell: Cell) -> tuple[Any, ...]:
    layers = cell.pipeline.layers
    order = (layers.permutation.name, getattr(layers.permutation, "rounds", None))
    metric = (layers.metric.name, getattr(layers.metric, "exponent", None))
    return (str(cell.pipeline.pattern), order, metric, layers.window)


def meant(combination: dict[str, Any]) -> tuple[Any, ...]:
    order = {"plain": ("none", None), "cp": ("cp", 9), "lcp": ("lcp", None)}
    metric = ("wanda", None) if combination["layers.metric"] == "wanda" else ("ria", 2.0)
    return (
        combination["pattern"],
        order[combination["layers.permutation"]],
        metric,
        combination["layers.window"],
    )


NESTED = """\
matrix:
  layers: [{window: 1}, {window: 2, metric: ria}]
  layers.permutation: {plain: none, searched: {name: cp, rounds: 9}, learned: lcp}
  calibration.dataset: [python-docs, {name: text, path: a.txt}]
  include:
    - {layers.permutation.block: 8, layers.permutation: lcp, layers.metric: ria}
    - {layers.permutation.rounds: 2, layers.permutation: searched, calibration: {sequences: 2}}
  exclude:
    - {layers.permutation: searched, calibration.dataset: {name: text, path: a.txt}}
    - {layers: {window: 1}, layers.permutation: lcp}
  repeat: 2
"""


def test_a_nested_study_reads_back(study: Any, toys: Registry) -> None:
    nested = study(NESTED)
    assert len(nested.cells) == 2 * (12 - 2 - 2 + 2)
    assert reread(nested, toys) == nested
    last = nested.cells[-1].pipeline
    assert (last.layers.permutation.rounds, last.calibration.sequences) == (2, 2)
