"""One self-contained HTML page about a run or a study of permllm.

The way of the data: a run's folder → :mod:`~permllm_report.record` → what each section
shows (:mod:`~permllm_report.heat`, :mod:`~permllm_report.orders`, …) → inline SVG and
tables → :mod:`~permllm_report.page`.
"""

from __future__ import annotations

__version__ = "0.1.0"
