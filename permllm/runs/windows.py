"""Finished windows on disk, so that a run can resume and others can share them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
from torch import Tensor

from permllm.deprecation import warn_of_old_name
from permllm.files import converted, replacing
from permllm.results import Cost, LayerReport
from permllm.runs.tensors import mapped_tensors, read_facts, read_tensors, save_tensors

FORMAT = "permllm-window-3"
"""Names the layout of a window file in its metadata."""

WEIGHT, PERMUTATION, IMPORTANCE = "weight/", "perm/", "importance/"
"""What the names of a window file's tensors begin with."""


@attrs.frozen
class TrainingStep:
    """A step of what trained in a window.

    Attributes:
        stage: ``"permutation"`` or ``"pruner"``, the kind of what trains.
        step: from 1 to ``total``.
        total: of all steps, as it was known then.
        figures: what was measured.
    """

    stage: str
    step: int
    total: int
    figures: dict[str, float]


@attrs.frozen(eq=False)
class PrunedWindow:
    """What pruning a window gave.

    Attributes:
        weights: by linear, ``[C_out, C_in]``, input channels in their original order.
        permutations: by group, ``LongTensor[C_in]``; ``weight[:, permutation]`` is N:M.
        importance: by group, ``[C_in]`` in float32: the scores that the linears of the
            group were ordered by, summed over their outputs, in original order.
        reports: one per linear, in order of execution.
        cost: of all its stages.
        key: the hash of all that it depends on; empty where that cannot be told.
        threads: how many threads computed it, which decides how sums are rounded.
        course: how the training went, for the record of runs that share the window.
    """

    weights: dict[str, Tensor]
    permutations: dict[str, Tensor]
    importance: dict[str, Tensor]
    reports: tuple[LayerReport, ...]
    cost: Cost
    key: str = ""
    threads: int = 0
    course: tuple[TrainingStep, ...] = ()

    @property
    def perms(self) -> dict[str, Tensor]:
        """Deprecated: :attr:`permutations`."""
        warn_of_old_name("PrunedWindow.perms", "permutations")
        return self.permutations


def joined(windows: Sequence[PrunedWindow], key: str = "") -> PrunedWindow:
    """All windows of a model as one."""
    weights: dict[str, Tensor] = {}
    permutations: dict[str, Tensor] = {}
    importance: dict[str, Tensor] = {}
    reports: list[LayerReport] = []
    cost = Cost()
    for window in windows:
        weights |= window.weights
        permutations |= window.permutations
        importance |= window.importance
        reports += window.reports
        cost += window.cost
    return PrunedWindow(weights, permutations, importance, tuple(reports), cost, key)


def window_path(directory: Path, index: int) -> Path:
    """Where window ``index`` of a run is kept."""
    return directory / f"{index:03d}.safetensors"


@attrs.frozen
class WindowRecord:
    """What a window's file says beside its tensors.

    Attributes:
        reports, cost, key, threads, course: of the window.
        tensors: the hash of each tensor, by its name in the file.
    """

    reports: tuple[LayerReport, ...]
    cost: Cost
    key: str
    threads: int
    tensors: dict[str, str]
    course: tuple[TrainingStep, ...] = ()


def save_window(path: Path, window: PrunedWindow) -> None:
    """Write a window to a file.

    Raises:
        OSError: that fails.
    """
    tensors = {f"{WEIGHT}{name}": weight for name, weight in _contiguous(window.weights)}
    tensors |= {f"{PERMUTATION}{name}": one for name, one in _contiguous(window.permutations)}
    tensors |= {f"{IMPORTANCE}{name}": sums for name, sums in window.importance.items()}
    record = WindowRecord(
        window.reports, window.cost, window.key, window.threads, {}, window.course
    )
    save_tensors(path, FORMAT, tensors, attrs.asdict(record))


def place_window(path: Path, window: PrunedWindow, entry: Path | None) -> None:
    """Put a window where a run keeps it, at once whole.

    Args:
        path: where.
        window: the window.
        entry: a file that holds it already, on which the new name may be set.
    """
    with replacing(path) as unfinished:
        try:
            if entry is None:
                save_window(unfinished, window)
            else:
                # A second name costs no space.
                unfinished.hardlink_to(entry)
        except OSError:
            # Another file system, one without links, or the entry has just made room.
            save_window(unfinished, window)


def load_window(path: Path, *, weights: bool = True) -> PrunedWindow:
    """Read a window back, and check that all of it is what was written.

    Args:
        path: the window's file.
        weights: False leaves the weights, which are nearly all of the file, unread.

    Raises:
        UserError: the file is damaged or is no window.
    """
    record = read_window_record(path)
    wanted = [name for name in record.tensors if weights or not name.startswith(WEIGHT)]
    tensors = read_tensors(path, record.tensors, wanted, "window")
    return PrunedWindow(
        weights=_under(WEIGHT, tensors),
        permutations=_under(PERMUTATION, tensors),
        importance=_under(IMPORTANCE, tensors),
        reports=record.reports,
        cost=record.cost,
        key=record.key,
        threads=record.threads,
        course=record.course,
    )


def mapped_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a window that has just been written, mapped from its file, not checked.

    Raises:
        UserError: the file cannot be read.
    """
    return _under(WEIGHT, mapped_tensors(path, WEIGHT, "window"))


def read_window_record(path: Path) -> WindowRecord:
    """What a window's file says beside its tensors.

    Raises:
        UserError: the file is damaged or is no window.
    """
    return converted(read_facts(path, FORMAT, "window"), WindowRecord, str(path))


def _contiguous(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.contiguous()) for name, tensor in tensors.items())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
