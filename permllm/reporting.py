"""What reports of one's own are made of, in one place.

A run's folder is read by :func:`read_record`, finished or not. Its figures come as they are
printed, by decoder layer and as rows of the comparison, and pictures have the look of
permllm's own::

    record = read_record(Path("runs/quickstart-20260131-120000"))
    print(sentence(record.results))
    for run in record.pruned:
        for layer, reports in by_layer(run.result.layers).items():
            print(run.label, layer, percent(mean(reports, lambda report: report.retained)))
"""

from __future__ import annotations

from permllm.comparing.comparison import PERPLEXITY, dense_run, perplexities
from permllm.comparing.repeats import Setting, Spread
from permllm.comparing.sentence import sentence
from permllm.comparing.table import Column, Row, columns, rows_of
from permllm.files import write_text
from permllm.report.plots import COLOURS, FAINT, GREY, STYLE, Course, training_curves
from permllm.report.record import Record, RunRecord, State, read_record
from permllm.runs.layers import by_layer, joined, layer_of, mean, place_in_layer
from permllm.units import duration, number, percent

__all__ = [
    "COLOURS",
    "FAINT",
    "GREY",
    "PERPLEXITY",
    "STYLE",
    "Column",
    "Course",
    "Record",
    "Row",
    "RunRecord",
    "Setting",
    "Spread",
    "State",
    "by_layer",
    "columns",
    "dense_run",
    "duration",
    "joined",
    "layer_of",
    "mean",
    "number",
    "percent",
    "perplexities",
    "place_in_layer",
    "read_record",
    "rows_of",
    "sentence",
    "training_curves",
    "write_text",
]
