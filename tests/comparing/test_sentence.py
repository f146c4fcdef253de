"""The sentence is true whatever the figures are."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from permllm.comparing.table import sentence

FIGURE = "perplexity/python-docs"


def ordered(pruned, *perplexities: float):
    """Runs of three orders with these perplexities."""
    names = ("none", "cp", "lcp")
    return [
        pruned(name, value, permutation=name)
        for name, value in zip(names, perplexities, strict=True)
    ]


def test_best_order_first_and_its_rivals_after_it(results) -> None:
    assert sentence(results()) == (
        "Pruned in the original channel order, the perplexity on python-docs goes from 20.00 to "
        "100.0. lcp brings it back to 40.00, which closes 75 % of that gap (cp: 25 %)."
    )


def test_learned_order_that_is_worse_than_the_heuristic(results, pruned) -> None:
    said = sentence(results(*ordered(pruned, 100.0, 60.0, 110.0)))
    assert "cp brings it back to 60.00, which closes 50 % of that gap (lcp: -12 %)" in said


def test_no_order_helps(results, pruned) -> None:
    said = sentence(results(*ordered(pruned, 100.0, 120.0, 108.0)))
    assert "No other order helped: with lcp, the best of them, it is 108.0" in said
    assert "the gap grows by 10 %" in said


def test_only_order_is_worse(results, pruned) -> None:
    runs = ordered(pruned, 100.0, 120.0, 108.0)
    said = sentence(results(runs[0], runs[2]))
    assert "lcp does not help: with it, it is 108.0, and the gap grows by 10 %." in said


def test_nothing_to_close(results, pruned) -> None:
    said = sentence(results(*ordered(pruned, 19.0, 18.0, 17.0)))
    assert "there is no gap to close" in said
    assert "With lcp it is 17.00" in said


def test_without_a_reference_the_best_is_named(results, pruned) -> None:
    assert sentence(results(pruned("lcp", 40.0))) == (
        "lcp has a perplexity on python-docs of 40.00; the dense model has 20.00."
    )
    said = sentence(results(pruned("a", 40.0), pruned("b", 30.0)))
    assert said.startswith("Of 2 pruned models, b has the lowest perplexity on python-docs: 30.00")


def test_without_perplexity_the_scores_speak(results, pruned, without) -> None:
    dense = without(results()["dense"], FIGURE)
    made = results(without(pruned("lcp", 1.0), FIGURE), before=dense)
    assert sentence(made).startswith("lcp keeps 81.2 % of the importance scores")
    made = results(without(pruned("x", 1.0), FIGURE, "retained"), before=dense)
    assert sentence(made) == "No perplexity was measured."


def test_infinite_perplexity_is_no_closed_gap(results, pruned) -> None:
    said = sentence(results(*ordered(pruned, math.inf, 50.0, 40.0)))
    assert said.endswith("goes from 20.00 to ∞. With lcp it is 40.00.")


def test_several_references_are_told_apart(results, pruned) -> None:
    made = results(
        *(
            pruned(f"{metric} {order}", value, metric=metric, permutation=order)
            for metric, order, value in (
                ("wanda", "none", 100.0),
                ("wanda", "cp", 60.0),
                ("ria", "none", 80.0),
                ("ria", "cp", 50.0),
            )
        )
    )
    said = sentence(made)
    assert "original channel order (ria none)" in said
    assert "ria cp brings it back to 50.00, which closes 50 % of that gap." in said


def test_repeats_are_means(study) -> None:
    assert sentence(study(none=[100.0, 120.0], cp=[80.0, 100.0], lcp=[30.0, None])) == (
        "Pruned in the original channel order, the perplexity on python-docs goes from 20.00 to "
        "110.0 ± 14.1. lcp brings it back to 30.00, which closes 88 % of that gap (cp: 22 %). "
        "Figures are means ± standard deviations of 1 to 2 repeats. "
        "1 run failed and counts for nothing."
    )
    said = sentence(study(none=[100.0, 120.0], cp=[80.0, 100.0]))
    assert "goes from 20.00 to 110.0 ± 14.1. cp brings it back to 90.00 ± 14.14" in said
    assert said.endswith("Figures are means ± standard deviations of 2 repeats.")


def test_means_that_point_to_different_sides(study) -> None:
    # One repeat closes half of a small gap, the other widens a large one.
    said = sentence(study(none=[22.0, 1020.0], cp=[21.0, 1120.0]))
    assert "With cp it is 570.5 ± 777.1; on average, 20 % of that gap is closed." in said


def test_failed_runs_are_counted_only(results, pruned, failed) -> None:
    said = sentence(results(pruned("none", 100.0), failed(pruned("cp", 1.0))))
    assert said == (
        "none has a perplexity on python-docs of 100.0; the dense model has 20.00. "
        "1 run failed and counts for nothing."
    )
    said = sentence(results(failed(pruned("none", 1.0)), failed(pruned("cp", 1.0))))
    assert said == (
        "The dense model has a perplexity on python-docs of 20.00. "
        "2 runs failed and count for nothing."
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(1, 1e9) | st.just(math.inf), min_size=3, max_size=3))
def test_closing_is_claimed_only_where_something_closed(results, pruned, values) -> None:
    said = sentence(results(*ordered(pruned, *values)))
    none, best = values[0], min(values[1:])
    assert ("brings it back" in said) == (20 < none < math.inf and best < none)
