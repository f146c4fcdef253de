"""What a pipeline's runs measured: the object behind ``results.json`` and every table."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from permllm.measured import DENSE, Cost, LayerReport, RunResult

__all__ = ["DENSE", "Cost", "LayerReport", "Results", "RunResult"]


@attrs.frozen
class Results:
    """What a whole pipeline measured; the first run is the dense model.

    Attributes:
        pipeline: the pipeline's name.
        out: its run folder.
        runs: dense first, then in the order of the matrix.
    """

    pipeline: str
    out: str
    runs: tuple[RunResult, ...]

    @property
    def failed(self) -> tuple[RunResult, ...]:
        """The runs that broke."""
        return tuple(run for run in self.runs if run.error is not None)

    def __getitem__(self, label: str) -> RunResult:
        """The run with this label; KeyError with the known labels otherwise."""
        for run in self.runs:
            if run.label == label:
                return run
        raise KeyError(f"no run '{label}'; there are {[run.label for run in self.runs]}")

    def table(self) -> str:
        """The comparison of the runs as a table in Markdown, as ``report.md`` has it."""
        # Late, here and below: rich takes a moment, and most who measure print nothing.
        from permllm.comparing.table import markdown

        return markdown(self)

    def _repr_html_(self) -> str:
        """The same for notebooks, with a sentence on it."""
        from permllm.comparing.table import html

        return html(self)

    def to_dict(self, *, layers: bool = True) -> dict[str, Any]:
        """Plain data for JSON; ``layers=False`` leaves out the per-layer reports."""
        data = attrs.asdict(self)
        data["runs"] = list(data["runs"])
        for run in data["runs"]:
            run["layers"] = [dict(report, shape=list(report["shape"])) for report in run["layers"]]
            if not layers:
                del run["layers"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Results:
        """The inverse of :meth:`to_dict`.

        Raises:
            msgspec.ValidationError: something in it is of another type.
        """
        return msgspec.convert(data, cls)
