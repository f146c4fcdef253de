"""What a run's folder says in JSON, read strictly: results, state, environment, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.files import read_record, write_sealed
from permllm.results import Results


@attrs.frozen
class State:
    """``state.json``: which run the folder of a run belongs to.

    Attributes:
        key: the hash of all that its results depend on; empty where that cannot be told.
        threads: how many compute; 0 where an older version did not say.
        parts: the same part by part.
    """

    key: str
    threads: int = 0
    parts: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Environment:
    """Of ``environment.json`` what later commands rely on.

    Attributes:
        model_fingerprint: of the model's files.
        calibration_fingerprint: of the calibration text.
        plugin_files: the hash of each file of plugins, by its path.
        versions: of permllm, torch and so on.
        model: where the model came from, for people.
        threads: how many compute; None where that is not said.
        cuda_device: its name, if there was one.
    """

    model_fingerprint: str | None = None
    calibration_fingerprint: str | None = None
    plugin_files: dict[str, str] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)
    model: str | None = None
    threads: int | None = None
    cuda_device: str | None = None


@attrs.frozen
class Exported:
    """``exports.json``: what a run's exports hold, by exporter, file and SHA-256."""

    exports: dict[str, dict[str, str]] = attrs.field(factory=dict)


def read_results(path: Path, *, older: bool = False) -> Results:
    """``results.json`` of a plan, or ``result.json`` of one run.

    Raises:
        UserError: as for :func:`permllm.files.read_record`; or there is no run in it.
    """
    results = read_record(path, Results, older=older)
    if not results.runs:
        raise UserError("this is damaged: it holds no run", file=str(path))
    return results


def write_results(path: Path, results: Results) -> None:
    """Write results, sealed."""
    write_sealed(path, results.to_dict())
