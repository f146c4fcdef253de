"""The harness's results as figures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from permllm.errors import UserError, did_you_mean

NO_FILTER = "none"
"""The harness's name of answers taken as they are."""

NOT_AVAILABLE = "N/A"
"""The harness's value of a standard error that it cannot compute."""

STDERR = "_stderr"
"""The ending of a metric that is another's standard error."""


def figures_of(
    results: Mapping[str, Mapping[str, Any]],
    names: Iterable[str],
    *,
    shots: int | None,
    metrics: Collection[str],
) -> dict[str, float]:
    """``lm-eval/<task>/<metric>`` and each one's ``/stderr`` where the harness gives it.

    A metric of filtered answers has the filter's name behind it, and a task for which
    a number of examples was asked has ``<n>-shot`` behind it.

    Args:
        results: the harness's, by task or group: ``"<metric>,<filter>"`` and other keys.
        names: of the tasks and groups that are to be reported.
        shots: the number of examples that was asked for.
        metrics: the only ones to report; all where it is empty.

    Raises:
        UserError: a task has none of the metrics, or one that is no number.
    """
    figures: dict[str, float] = {}
    known: set[str] = set()
    for name in names:
        prefix = f"lm-eval/{name}" if shots is None else f"lm-eval/{name}/{shots}-shot"
        for key, value in results[name].items():
            metric, comma, answers = key.partition(",")
            base = metric.removesuffix(STDERR)
            if not comma or value == NOT_AVAILABLE:
                continue
            known.add(base)
            if base in metrics or not metrics:
                filtered = [] if answers == NO_FILTER else [answers]
                ending = [] if base == metric else ["stderr"]
                figures["/".join([prefix, base, *filtered, *ending])] = _number(value, name, base)
    check_metrics(metrics, known)
    return figures


def check_metrics(metrics: Iterable[str], known: Collection[str]) -> None:
    """Whether all metrics are known.

    Raises:
        UserError: one is not.
    """
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"none of the tasks has the metric '{metric}'", hint=did_you_mean(metric, known)
            )


def _number(value: Any, task: str, metric: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"the metric '{metric}' of the task '{task}' is no number but {str(value)[:60]}",
            hint="name the metrics that are, with metrics: […]",
        ) from None
