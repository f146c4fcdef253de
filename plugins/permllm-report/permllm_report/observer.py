"""The observer that leaves the page in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

import permllm
from permllm.components import Observer, option

if TYPE_CHECKING:
    from permllm.results import Results
    from permllm.runs.plan import Plan

FILE = "report.html"
"""The page's name in the folder of the run."""


@attrs.frozen
class Report(Observer):
    """Writes report.html, one page with everything, into the run's folder at the end."""

    name: ClassVar[str] = "report"

    layers: tuple[int, ...] | None = option(
        None, help="decoder layers whose orders are drawn; first, middle and last if null"
    )

    @layers.validator
    def _from_zero(self, attribute: attrs.Attribute[Any], layers: tuple[int, ...] | None) -> None:
        if layers is not None and any(layer < 0 for layer in layers):
            raise ValueError("'layers' are the numbers of decoder layers, from 0")

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        """What waits for the end of the pipeline that runs in ``out``."""
        return Writer(self.layers, out, warn)


@attrs.frozen
class Writer:
    """Writes the page once the plan has finished."""

    layers: tuple[int, ...] | None
    out: Path
    warn: Callable[[str], None]

    # Last, so that the event log is complete.
    @permllm.hookimpl(trylast=True)
    def permllm_plan_finished(self, plan: Plan, results: Results) -> None:
        """Write the page; what goes wrong is a warning, since the results are safe."""
        from permllm.reporting import read_record
        from permllm_report.page import write_page

        try:
            record = read_record(self.out, results)
            write_page(record, self.out / FILE, self.layers)
        except (OSError, permllm.PermllmError) as error:
            self.warn(f"{self.out / FILE} could not be written: {error}")
