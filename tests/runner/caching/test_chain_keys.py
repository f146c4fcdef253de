"""Keys of stages: runs share what depends on the same, and nothing else."""

from __future__ import annotations

import pytest

from permllm.core.statistics import GRAM, SQUARE_SUM
from permllm.permutations.cp import Cp
from permllm.permutations.lcp import Lcp
from permllm.runner.caching.chain_keys import ChainKeys

FIRST, SECOND = range(1), range(1, 2)


@pytest.fixture
def keys(loop_of):
    def make(**options) -> ChainKeys:
        return loop_of(**options).keys

    return make


def test_the_pruner_matters_for_the_window_alone(keys) -> None:
    one, other = keys(), keys(pruner="sparsegpt")
    assert one.statistic(GRAM, FIRST) == other.statistic(GRAM, FIRST)
    assert one.permutations(Cp(), FIRST) == other.permutations(Cp(), FIRST)
    assert one.window(FIRST) != other.window(FIRST)


def test_the_metric_does_not_matter_for_statistics(keys) -> None:
    one, other = keys(), keys(metric="magnitude")
    assert one.statistic(GRAM, FIRST) == other.statistic(GRAM, FIRST)
    assert one.permutations(Cp(), FIRST) != other.permutations(Cp(), FIRST)


def test_each_statistic_layer_and_learner_has_its_own(keys) -> None:
    one = keys()
    several = {
        one.statistic(GRAM, FIRST),
        one.statistic(SQUARE_SUM, FIRST),
        one.statistic(GRAM, SECOND),
        one.permutations(Cp(), FIRST),
        one.permutations(Lcp(), FIRST),
        one.permutations(Cp(), SECOND),
        one.window(FIRST),
    }
    assert len(several) == 7
    assert None not in several


def test_other_text_changes_everything(keys) -> None:
    one, other = keys(), keys(tokens=1)
    assert one.statistic(GRAM, FIRST) != other.statistic(GRAM, FIRST)
    assert one.window(FIRST) != other.window(FIRST)


def test_windows_rest_on_those_before_unless_inputs_are_dense(keys) -> None:
    for inputs, same in (("pruned", False), ("dense", True)):
        one, other = keys(inputs=inputs), keys(inputs=inputs)
        one.passed("a")
        other.passed("b")
        assert (one.statistic(GRAM, SECOND) == other.statistic(GRAM, SECOND)) == same
        assert one.model() != other.model()


def test_after_a_window_without_a_key_nothing_is_kept(keys) -> None:
    one = keys()
    one.passed(None)
    assert one.model() == ""
    assert one.statistic(GRAM, SECOND) is None
    assert one.window(SECOND) is None
