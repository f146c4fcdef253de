"""Mistakes in a matrix are placed where they stand in it."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("{layer.permutation: [none]}", "3:10: unknown key 'layer'"),
        ("{layers.permutaton: [none]}", "3:10: unknown key 'permutaton'"),
        ("{layers.permutation: [none, lpc]}", "3:37: unknown permutation 'lpc'"),
        ("{layers.permutation: [none, {name: lcp, pases: 3}]}", "3:49: unknown option 'pases'"),
        ("{layers.permutation: [none, {name: none}]}", "3:37: the matrix has this value"),
        ("{seed: [1, x]}", "3:20: expected a whole number"),
        ("{seed: 1}", "3:16: the matrix needs a list of values for 'seed'"),
        ("{seed: []}", "3:16: the matrix needs a list"),
        ("{seed..x: [1]}", "3:10: 'seed..x' is no dotted key"),
        ("{model.path: [a, b]}", "3:10: 'model.path' cannot vary"),
        ("[seed]", "3:9: the matrix must map dotted keys to lists"),
        (f"{{seed: {list(range(1001))}}}", "3:1: the matrix has 1001 combinations"),
        (f"{{seed: {[0] * 32}, layers.window: {[1] * 32}}}", "1024 combinations"),
        ("{" + ", ".join(f"k{i}: [1]" for i in range(101)) + "}", "3:1: the matrix has 101 keys"),
        ("{layers.permutation: [lcp, none], layers.permutation.block: [2]}", "3:43: unknown opt"),
        ("{repeat: 3, layers.permutation.block: [2, 2.0]}", "3:51: expected a whole number"),
        ("{layers.permutation: {}}", "3:30: the matrix needs a list of values"),
        (
            "{layers.permutation: {name: cp, rounds: 50}}",
            "3:31: a value of 'layers.permutation' can",
        ),
        ("{layers.permutation: {a: none, '': cp}}", "3:40: the name '' of a value must be"),
        ("{layers.permutation: {a: none, b: {name: none}}}", "3:43: the matrix has this value"),
        ("{layers.permutation: {a: none, b: lpc}}", "3:43: unknown permutation 'lpc'"),
        ("{repeats: 3}", "3:10: unknown key 'repeats'\n  hint: did you mean 'repeat'?"),
        ("{repeat: 0}", "3:18: repeat must be between 1 and 100, not 0"),
        ("{repeat: 101}", "3:18: repeat must be between 1 and 100"),
        ("{repeat: true}", "3:18: expected a whole number of repeats, not true"),
        ("{repeat: 2, seed: [1]}", "3:21: 'repeat' sets 'seed' itself"),
        ("{repeat: 2, calibration.seed: [1]}", "3:21: 'repeat' sets 'calibration.seed' itself"),
        ("{repeat: 2, include: [{seed: 3}]}", "3:32: 'repeat' sets 'seed' itself"),
        (
            "{repeat: 2, calibration: [{}, {seed: 3}]}",
            "3:10: 'repeat' needs one 'calibration.seed'",
        ),
        (
            f"{{repeat: 100, layers.window: {list(range(1, 12))}}}",
            "11 combinations, 1100 runs with",
        ),
        ("{include: {layers.permutation: cp}}", "3:19: 'include' must be a list of mappings"),
        ("{include: [cp]}", "3:20: expected a mapping of dotted keys to values, not the text 'cp'"),
        ("{exclude: [{}]}", "3:20: expected a mapping of dotted keys to values, not nothing"),
        ("{include: [{layer.permutation: cp}]}", "3:21: unknown key 'layer'"),
        ("{include: [{layers.permutaton: cp}]}", "3:21: unknown key 'permutaton'"),
        ("{include: [{layers.permutation: lpc}]}", "3:41: unknown permutation 'lpc'"),
        ("{include: [{evaluate: []}]}", "3:21: 'evaluate' cannot vary"),
        ("{include: [{seed: 0}], seed: [1, 0]}", "3:20: the matrix has this run twice"),
        ("{include: [{seed: 3}, {seed: 3}]}", "3:31: the matrix has this run twice"),
        (
            "{layers.permutation.block: [2, 4], layers.permutation: [lcp, {name: lcp, block: 2}]}",
            "3:70: the matrix has this run twice",
        ),
        (
            "{seed: [1], exclude: [{sed: 1}]}",
            "3:32: 'sed' is no key of the matrix\n  hint: did you",
        ),
        ("{seed: [1, 2], exclude: [{seed: 3}]}", "3:41: the matrix has no such value of 'seed'"),
        (
            "{layers.permutation: [cp, lcp], exclude: [{layers.permutation: lpc}]}",
            "3:72: the matrix has no such value of 'layers.permutation'\n  hint: did you mean",
        ),
        (
            "{layers.permutation: {plain: none, fast: cp}, exclude: [{layers.permutation: fats}]}",
            "hint: did you mean 'fast'? known: fast, plain",
        ),
        (
            "{layers.permutation: [cp], exclude: [{layers.permutation: {name: cp, round: 1}}]}",
            "3:78: unknown option 'round'",
        ),
        (
            "{seed: [1, 2], pattern: [1:4, 2:4], exclude: [{seed: 1}, {seed: 1, pattern: 1:4}]}",
            "3:66: this takes nothing away",
        ),
        ("{seed: [1, 2], exclude: [{seed: 1}, {seed: 2}]}", "3:24: no run is left"),
        (
            "{seed: [1, 2], exclude: [{seed: 1}], include: [{seed: 1, layers.window: 3}]}",
            "3:56: 'exclude' in line 3 would take this run away",
        ),
        # What an entry leaves open is compared, too: the file's seed is 0.
        (
            "{seed: [0, 2], exclude: [{seed: 0}], include: [{layers.window: 3}]}",
            "3:56: 'exclude' in line 3 would take this run away",
        ),
        (
            f"{{seed: {list(range(101))}, layers.window: {[1] * 100}, exclude: [{{seed: 1}}]}}",
            "10100 combinations; 10000 are the most that 'exclude' can choose from",
        ),
    ],
)
def test_mistakes_are_placed_in_the_matrix(refused: Any, matrix: str, message: str) -> None:
    assert message in refused(f"matrix: {matrix}")
