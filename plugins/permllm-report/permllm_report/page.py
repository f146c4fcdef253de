"""The page: one HTML file with everything in it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from markupsafe import Markup

from permllm.reporting import (
    Record,
    RunRecord,
    State,
    duration,
    number,
    percent,
    perplexities,
    sentence,
    write_text,
)
from permllm_report import __version__, palette
from permllm_report.comparison_table import ComparisonTable, comparison_table
from permllm_report.curves import loss_chart
from permllm_report.heat import HeatMap, heat_maps, shared_scales
from permllm_report.order_picture import OrderPicture, dots_each, draw_order
from permllm_report.orders import chosen_layers, read_orders
from permllm_report.scatter import cost_charts

OPEN = 3
"""If a page has more pruned runs than these, their sections are closed at first."""

SHOWN_CURVES = 6
"""More loss curves than these are shown on demand."""


@attrs.frozen
class RunSection:
    """What the page shows of one pruned run.

    Attributes:
        run: the run.
        anchor: the id of its section.
        facts: a few figures in words, for the section's heading.
        heat: its heat maps.
        orders: its orders in pictures.
        kept: the groups, in words, whose channels stay where they were.
        options: what the matrix set, as key and JSON.
    """

    run: RunRecord
    anchor: str
    facts: str
    heat: tuple[HeatMap, ...]
    orders: tuple[OrderPicture, ...]
    kept: tuple[str, ...]
    options: tuple[tuple[str, str], ...]


def write_page(record: Record, path: Path, layers: Sequence[int] | None = None) -> None:
    """Write the page, which appears as a whole.

    Args:
        record: what a run's folder tells.
        path: the file; its folder is made.
        layers: decoder layers whose orders are drawn; first, middle and last if None.

    Raises:
        UserError: there is no such layer, or a window's file is damaged.
        OSError: the file cannot be written.
    """
    write_text(path, render(record, layers))


def render(record: Record, layers: Sequence[int] | None = None) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("permllm_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["breakable"] = breakable
    return templates.get_template("page.html").render(contents(record, layers))


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def contents(record: Record, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """What the template shows.

    Raises:
        UserError: there is no such layer, or a window's file is damaged.
    """
    results = record.results
    table = comparison_table(results) if results.runs else ComparisonTable((), ())
    drawn = chosen_layers(record.pruned, layers)
    sections = run_sections(record, drawn)
    charts = [
        chart
        for index, run in enumerate(record.runs)
        if (chart := loss_chart(run, f"loss-{index}"))
    ]
    costs = list(cost_charts(results, table.numbers))
    return {
        "record": record,
        "sentence": sentence(results) if results.runs else "Nothing has been measured yet.",
        "undone": [run for run in record.runs if not run.ended],
        "table": table,
        "anchors": {section.run.label: section.anchor for section in sections},
        "costs": costs,
        "curves": charts,
        "shown_curves": SHOWN_CURVES,
        "sections": sections,
        "drawn_layers": drawn,
        "open": len(sections) <= OPEN,
        "inputs": environment_rows(record.environment),
        "versions": record.environment.get("versions", {}),
        "palette": palette,
        "program": f"permllm-report {__version__}",
    }


def run_sections(record: Record, layers: Sequence[int]) -> list[RunSection]:
    """The sections of the pruned runs; their pictures share the page's room."""
    scales = shared_scales(run.result.layers for run in record.pruned)
    orders = {run.label: read_orders(run, layers) for run in record.pruned}
    moved = {label: [order for order in found if order.moved] for label, found in orders.items()}
    dots = dots_each(sum(map(len, moved.values())))
    figures = perplexities(record.results)
    return [
        RunSection(
            run,
            anchor=f"run-{index}",
            facts=facts(run, figures),
            heat=tuple(heat_maps(run.result.layers, scales)),
            orders=tuple(
                draw_order(order, dots, f"run-{index}-order-{place}")
                for place, order in enumerate(moved[run.label])
            ),
            kept=tuple(
                f"layer {order.layer}, {order.linears}"
                for order in orders[run.label]
                if not order.moved
            ),
            options=tuple(
                (key, json.dumps(value, ensure_ascii=False))
                for key, value in run.result.options.items()
            ),
        )
        for index, run in enumerate(record.pruned, start=1)
    ]


def facts(run: RunRecord, figures: Sequence[str]) -> str:
    """A few figures of a run in words."""
    result = run.result
    if run.state is not State.FINISHED:
        done = len(run.windows)
        windows = f"{done} window{'s' if done != 1 else ''} finished" if done else ""
        return ", ".join(part for part in (str(run.state), windows) if part)
    said = [f"perplexity {number(result.figures[name])}" for name in figures[:1]
            if name in result.figures]  # fmt: skip
    if "retained" in result.figures:
        said.append(f"{percent(result.figures['retained'])} of the scores kept")
    return ", ".join([*said, duration(result.seconds)])


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run with what, but for the versions of packages."""
    rows = []
    for key, value in environment.items():
        if key != "versions" and (said := in_words(value)):
            rows.append((key.replace("_", " "), said))
    return rows


def in_words(value: Any) -> str:
    """Plain data as people write it; empty where there is nothing to say.

    >>> in_words({"permllm": "0.1.0", "own": None}), in_words(["permllm", "run", "a b.yaml"])
    ('permllm 0.1.0, own', "permllm run 'a b.yaml'")
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(inner)}".strip() for key, inner in value.items())
    if isinstance(value, list):
        return shlex.join(map(in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
