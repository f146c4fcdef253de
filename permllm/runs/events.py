"""The event log of a run, read back: one JSON object a line, written by an observer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = "events.jsonl"
"""The log's name in the folder of the run."""


def read_events(out: Path) -> list[dict[str, Any]]:
    """The events of the run in ``out``, oldest first; none if there is no log.

    Lines that a killed process left half written are passed over.
    """
    path = out / FILE
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return list(_parsed(file))


def _parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            # Of a number of thousands of digits it is not the decoder who complains.
            continue
        if isinstance(event, dict):
            yield event


def finite(data: Any) -> Any:
    """Plain data with None for NaN and the infinities, which JSON does not know."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data
