"""Keys of stages: runs share what depends on the same, and nothing else."""

from __future__ import annotations

import attrs
import pytest
import torch

from permllm.core.statistics import GRAM, SQUARE_SUM
from permllm.metrics.wanda import Wanda
from permllm.permutations.cp import Cp
from permllm.permutations.lcp import Lcp
from permllm.pruners.mask import Mask
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


@attrs.frozen
class Looking(Wanda):
    """Looks at the whole window."""

    def window_scores(self, window, linears):
        return super().window_scores(window, linears)


@attrs.frozen
class RefinesFirst(Mask):
    """Refines before permutations are learned."""

    refines_first = True
    level: int = 0


def changed(loop, rows: int, **changes) -> ChainKeys:
    """The keys with other components and so many learning rows, the same calibration."""
    sequences = attrs.evolve(loop.sequences, learning=torch.arange(rows))
    settings = {name: attrs.evolve(one, **changes) for name, one in loop.settings.items()}
    keys = loop.keys
    return ChainKeys(keys.stages, keys.pipeline, sequences, settings, keys.layer_of)


@pytest.mark.parametrize(
    ("changes", "depends"),
    [({}, False), ({"metric": Looking()}, True), ({"pruner": RefinesFirst()}, True)],
)
def test_scores_from_the_whole_window_depend_on_all_text(loop_of, changes, depends) -> None:
    four, six = (changed(loop_of(), rows, **changes) for rows in (4, 6))
    assert (four.permutations(Cp(), FIRST) != six.permutations(Cp(), FIRST)) == depends


def test_a_pruner_that_refines_first_matters_for_the_permutations(loop_of) -> None:
    one, other = (changed(loop_of(), 4, pruner=RefinesFirst(level)) for level in (0, 1))
    assert one.permutations(Cp(), FIRST) != other.permutations(Cp(), FIRST)
