"""Heat maps: a figure of every linear, by decoder layer and by place in the layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import attrs

from permllm.reporting import by_layer, mean, place_in_layer
from permllm.results import LayerReport
from permllm_report.palette import BLUE, GREEN, LEVELS, ORANGE


@attrs.frozen
class Measure:
    """What a map shows.

    Attributes:
        title: its name.
        unit: of its figures.
        hue: its colour.
        value: the figure of a report.
        form: the figure as it is written.
        note: what it means.
    """

    title: str
    unit: str
    hue: str
    value: Callable[[LayerReport], float]
    form: Callable[[float], str]
    note: str


def per_cent(share: float) -> str:
    """A share as per cent without the sign.

    >>> per_cent(0.7836), per_cent(float("nan"))
    ('78.4', '–')
    """
    return f"{100 * share:.1f}" if math.isfinite(share) else "–"


RETAINED = Measure(
    "Retained score",
    "%",
    BLUE,
    lambda report: report.retained,
    per_cent,
    "share of the importance scores that the pattern keeps; more is better",
)
GAINED = Measure(
    "Gained by the order",
    "percentage points",
    GREEN,
    lambda report: report.retained - report.retained_before,
    per_cent,
    "retained score above that of the original order; more is better",
)
ERROR = Measure(
    "Output error",
    "%",
    ORANGE,
    lambda report: report.error,
    per_cent,
    "squared change of the outputs relative to the outputs; less is better",
)
MEASURES = (RETAINED, GAINED, ERROR)

OUTLIERS = 0.05
"""The share of cells at either end that does not count for the range of the shades."""


@attrs.frozen
class Scale:
    """The range of a figure, cut into shades of equal width.

    Attributes:
        low, high: the ends; what lies beyond has the first or the last shade.
    """

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale | None:
        """The range of nearly all finite values; None if there are none.

        A few outliers would leave the others no shades.
        """
        finite = sorted(value for value in values if math.isfinite(value))
        if not finite:
            return None
        beyond = int(OUTLIERS * len(finite))
        return cls(finite[beyond], finite[-1 - beyond])

    def level(self, value: float) -> int | None:
        """The shade of a value, from 0; None for what is no number."""
        if math.isnan(value):
            return None
        if value <= self.low:
            return 0
        if value >= self.high:
            return LEVELS - 1
        return min(int((value - self.low) / (self.high - self.low) * LEVELS), LEVELS - 1)

    def bounds(self) -> list[float]:
        """The values between the shades."""
        step = (self.high - self.low) / LEVELS
        return [self.low + step * level for level in range(1, LEVELS)]


@attrs.frozen
class Cell:
    """A figure as it is written, and the number of its shade."""

    said: str
    level: int | None


@attrs.frozen
class HeatMap:
    """A table of figures.

    Attributes:
        measure: what it shows.
        heads: the folders that the columns stand in, each with the number of its columns.
        columns: the names of linears within their folder.
        rows: the number of each decoder layer, and its cells; None where it lacks a linear.
        legend: the shades with their ranges.
    """

    measure: Measure
    heads: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    legend: tuple[Cell, ...]


def shared_scales(runs: Iterable[Sequence[LayerReport]]) -> dict[Measure, Scale]:
    """The range of each figure over the cells of all runs, so that they can be compared."""
    tables = [figures for reports in runs for figures in cells_of(reports).values()]
    scales = {}
    for measure in MEASURES:
        values = [mean(cell, measure.value) for figures in tables for cell in figures.values()]
        if scale := Scale.of(values):
            scales[measure] = scale
    return scales


def heat_maps(reports: Sequence[LayerReport], scales: dict[Measure, Scale]) -> list[HeatMap]:
    """The maps of a run; that of the gain only if the order is another."""
    cells = cells_of(reports)
    places = _in_folders(dict.fromkeys(place for row in cells.values() for place in row))
    moved = any(GAINED.value(report) for report in reports)
    return [
        _heat_map(measure, cells, places, scale)
        for measure, scale in scales.items()
        if cells and (moved or measure is not GAINED)
    ]


def cells_of(reports: Iterable[LayerReport]) -> dict[int, dict[str, list[LayerReport]]]:
    """The reports by decoder layer and place in it; those of all experts have one place."""
    return {layer: _by_place(found) for layer, found in sorted(by_layer(reports).items())}


def _by_place(reports: Iterable[LayerReport]) -> dict[str, list[LayerReport]]:
    places: dict[str, list[LayerReport]] = {}
    for report in reports:
        places.setdefault(place_in_layer(report.linear), []).append(report)
    return places


def _in_folders(places: Iterable[str]) -> list[tuple[str, str]]:
    """Places as folder and name, those of one folder side by side."""
    parts = [(place.rpartition(".")[0], place.rpartition(".")[2]) for place in places]
    folders = list(dict.fromkeys(folder for folder, _ in parts))
    return sorted(parts, key=lambda part: folders.index(part[0]))


def _heat_map(
    measure: Measure,
    cells: dict[int, dict[str, list[LayerReport]]],
    places: Sequence[tuple[str, str]],
    scale: Scale,
) -> HeatMap:
    def cell(row: dict[str, list[LayerReport]], folder: str, name: str) -> Cell | None:
        found = row.get(f"{folder}.{name}" if folder else name)
        if not found:
            return None
        value = mean(found, measure.value)
        return Cell(measure.form(value), scale.level(value))

    heads = itertools.groupby(folder for folder, _ in places)
    return HeatMap(
        measure,
        heads=tuple((folder, len(list(same))) for folder, same in heads),
        columns=tuple(name for _, name in places),
        rows=tuple(
            (layer, tuple(cell(row, *place) for place in places)) for layer, row in cells.items()
        ),
        legend=_legend(measure, scale),
    )


def _legend(measure: Measure, scale: Scale) -> tuple[Cell, ...]:
    bounds = [measure.form(bound) for bound in scale.bounds()]
    said = [f"< {bounds[0]}", *(f"{bound} –" for bound in bounds[:-1]), f"≥ {bounds[-1]}"]
    return tuple(Cell(text, level) for level, text in enumerate(said))
