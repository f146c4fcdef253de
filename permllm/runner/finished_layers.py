"""The finished layers of a window that is being pruned, kept where they took long."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from torch import Tensor

from permllm.errors import UserError
from permllm.files import converted
from permllm.results import LayerReport
from permllm.runs.checkpoints import Checkpoints

T = TypeVar("T")

KEEP_SECONDS = 2.0
"""Work of so many seconds is worth keeping: what is quicker is done again."""

SHARE = 0.01
"""Of the time of the work, which writing may take: of layers that are large and quick, some are
done again."""

WEIGHT, NORMS, SCORES = "weight/", "norms/", "scores/"
"""What the names of tensors begin with."""


@attrs.frozen(eq=False)
class FinishedLayer:
    """What pruning a layer gave.

    Attributes:
        weights: ``[C_out, C_in]`` by linear, on the CPU.
        norms: ``[C_in]`` by group, the square sums of its inputs.
        reports: one for each linear.
    """

    weights: dict[str, Tensor]
    norms: dict[str, Tensor]
    reports: list[LayerReport]


@attrs.frozen
class _Facts:
    """What is kept of a layer beside its tensors."""

    reports: tuple[LayerReport, ...]
    seconds: float


@attrs.define(eq=False)
class FinishedLayers:
    """Keeps finished layers, and finds those of an attempt that was interrupted.

    Attributes:
        checkpoints: where they are kept.
        mapped: whether every layer is kept and its weights are mapped from the file, since those
            of all layers would take much of the memory.
        on_reuse: is told what was found, and the seconds that this saved.
        seconds: that the found ones took then.
        worked, written: seconds of the work of this attempt, and of writing what it gave.
        writing: seconds that it took to write the last time.
    """

    checkpoints: Checkpoints = attrs.field(factory=Checkpoints)
    mapped: bool = False
    on_reuse: Callable[[str, float], None] = lambda stage, seconds: None
    seconds: float = 0.0
    worked: float = 0.0
    written: float = 0.0
    writing: float = 0.0

    def scores(self, refine: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What pruners refined for the whole window, kept or made now."""
        if (kept := self.checkpoints.kept(SCORES)) is not None:
            self._found("refined scores", float(kept.facts))
            return _under(SCORES, kept.tensors)
        made, seconds = self._timed(refine)
        if made and self._is_worth_it(seconds):
            self._write(SCORES, {f"{SCORES}{name}": one for name, one in made.items()}, seconds)
        return made

    def layer(self, index: int, prune: Callable[[], FinishedLayer]) -> FinishedLayer:
        """A layer, kept or pruned now."""
        if (found := self._kept(index)) is not None:
            return found
        made, seconds = self._timed(prune)
        if self.mapped or self._is_worth_it(seconds):
            tensors = {f"{WEIGHT}{name}": one for name, one in made.weights.items()}
            tensors |= {f"{NORMS}{name}": one for name, one in made.norms.items()}
            facts = _Facts(tuple(made.reports), seconds)
            if self._write(_name(index), tensors, attrs.asdict(facts)) and self.mapped:
                return self._mapped(index, made)
        return made

    def _mapped(self, index: int, made: FinishedLayer) -> FinishedLayer:
        weights = self.checkpoints.mapped(_name(index), WEIGHT)
        return attrs.evolve(made, weights=_under(WEIGHT, weights))

    def _kept(self, index: int) -> FinishedLayer | None:
        kept = self.checkpoints.kept(_name(index))
        if kept is None:
            return None
        try:
            facts = converted(kept.facts, _Facts, _name(index))
        except UserError as error:
            self.checkpoints.warn(f"{error}: the layer is pruned again")
            return None
        self._found(_name(index), facts.seconds)
        tensors = kept.tensors
        found = FinishedLayer(_under(WEIGHT, tensors), _under(NORMS, tensors), list(facts.reports))
        return self._mapped(index, found) if self.mapped else found

    def _found(self, what: str, seconds: float) -> None:
        self.seconds += seconds
        self.on_reuse(what, seconds)

    def _timed(self, work: Callable[[], T]) -> tuple[T, float]:
        began = time.monotonic()
        made = work()
        seconds = time.monotonic() - began
        self.worked += seconds
        return made, seconds

    def _is_worth_it(self, seconds: float) -> bool:
        affordable = self.written + self.writing <= SHARE * self.worked
        worth = self.checkpoints.work and seconds >= KEEP_SECONDS and affordable
        return self.checkpoints.world.agreed(lambda: worth)

    def _write(self, name: str, tensors: Mapping[str, Tensor], facts: Any) -> bool:
        """Keep tensors; whether they are kept."""
        began, world = time.monotonic(), self.checkpoints.world
        kept = world.agreed(lambda: self.checkpoints.keep(name, tensors, facts))
        if not kept:
            # It has been said why; the next layers would not be kept either.
            self.checkpoints = Checkpoints(world=world)
        self.writing = time.monotonic() - began
        self.written += self.writing
        return kept


def _name(index: int) -> str:
    return f"pruning, layer {index}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)
    }
