"""One self-contained HTML page about a run or a study of permllm.

The way of the data: a run's folder → :mod:`~permllm_report.record` → what each section
shows (:mod:`~permllm_report.heat`, :mod:`~permllm_report.orders`, …) → tables, and what
matplotlib draws, made :mod:`~permllm_report.inline` SVG → :mod:`~permllm_report.page`.
"""

from __future__ import annotations

__version__ = "0.1.0"
