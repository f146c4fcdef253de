"""Finished windows on disk, so that a run can resume and others can share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.results import LayerReport
from permllm.runner.stages import Cost

FORMAT = "permllm-window-2"
"""Names the layout of a window file in its metadata."""

WEIGHT, PERM, IMPORTANCE = "weight/", "perm/", "importance/"
"""What the names of a window file's tensors begin with."""


@attrs.frozen(eq=False)
class PrunedWindow:
    """What pruning a window gave.

    Attributes:
        weights: by linear, ``[C_out, C_in]``, input channels in their original order.
        perms: by group, ``LongTensor[C_in]``; ``weight[:, perm]`` is N:M.
        importance: by group, ``[C_in]`` in float32: the scores that the linears of the
            group were ordered by, summed over their outputs, in original order.
        reports: one per linear, in order of execution.
        cost: of all its stages.
        key: the hash of all that it depends on; empty where that cannot be told.
    """

    weights: dict[str, Tensor]
    perms: dict[str, Tensor]
    importance: dict[str, Tensor]
    reports: tuple[LayerReport, ...]
    cost: Cost
    key: str = ""

    @property
    def patterns(self) -> dict[str, Pattern]:
        """The pattern of every pruned linear."""
        return {report.linear: Pattern.parse(report.pattern) for report in self.reports}


def window_path(directory: Path, index: int) -> Path:
    """Where window ``index`` of a run is kept."""
    return directory / f"{index:03d}.safetensors"


def save_window(path: Path, window: PrunedWindow) -> None:
    """Write a window to a file.

    Raises:
        OSError: that fails.
    """
    tensors = {f"{WEIGHT}{name}": weight.contiguous() for name, weight in window.weights.items()}
    tensors |= {f"{PERM}{name}": perm.contiguous() for name, perm in window.perms.items()}
    tensors |= {f"{IMPORTANCE}{name}": sums for name, sums in window.importance.items()}
    metadata = {
        "format": FORMAT,
        "cost": json.dumps(attrs.asdict(window.cost)),
        "key": window.key,
        "reports": json.dumps([attrs.asdict(report) for report in window.reports]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def place_window(path: Path, window: PrunedWindow, entry: Path | None) -> None:
    """Put a window where a run keeps it, at once whole.

    Args:
        path: where.
        window: the window.
        entry: a file that holds it already, on which the new name may be set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.unlink(missing_ok=True)
    try:
        if entry is None:
            save_window(unfinished, window)
        else:
            # A second name costs no space.
            unfinished.hardlink_to(entry)
    except OSError:
        # Another file system, one without links, or the entry has just made room.
        save_window(unfinished, window)
    unfinished.replace(path)


def load_window(path: Path, *, weights: bool = True) -> PrunedWindow:
    """Read a window back.

    Args:
        path: the window's file.
        weights: False leaves the weights, which are nearly all of the file, unread.

    Raises:
        UserError: the file is damaged or is no window.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = [key for key in file.keys() if weights or not key.startswith(WEIGHT)]  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in keys}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error})", hint="delete it; the window is then pruned again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a window of this version", hint="choose another --out")
    return PrunedWindow(
        weights=_under(WEIGHT, tensors),
        perms=_under(PERM, tensors),
        importance=_under(IMPORTANCE, tensors),
        reports=read_reports(metadata),
        cost=Cost(**json.loads(metadata["cost"])),
        key=metadata["key"],
    )


def read_reports(metadata: Mapping[str, Any]) -> tuple[LayerReport, ...]:
    """The reports in a window file's metadata."""
    return tuple(
        LayerReport(**dict(report, shape=tuple(report["shape"])))
        for report in json.loads(metadata["reports"])
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
