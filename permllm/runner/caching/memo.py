"""Stages whose results are kept: computed once, and taken from the cache from then on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from permllm.errors import UserError
from permllm.files import converted, parse_json, read_json
from permllm.results import Cost
from permllm.runner.caching.keys import Unhashable, digest
from permllm.runner.caching.leases import Lease
from permllm.runner.caching.store import Cache
from permllm.runner.memory import PeakMemory
from permllm.world import ALONE, World

T = TypeVar("T")

PARTS_SHARE = 0.25
"""Of the cache, what one run's parts of a stage may take: hidden states of a large model between
narrow windows would push out all else."""

ROUND_SECONDS = 60.0
"""So long one of several processes waits for another run before the others hear from it."""


@attrs.define(eq=False)
class Meter:
    """Measures a block: ``with Meter().running() as meter: …``; then ``meter.cost``."""

    cost: Cost = attrs.field(factory=Cost)

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Measure the block."""
        began = time.perf_counter()
        with PeakMemory() as peak:
            yield self
        self.cost = Cost(time.perf_counter() - began, peak.bytes)


@attrs.frozen(eq=False)
class Outcome:
    """What a stage gave.

    Attributes:
        tensors: on the CPU, by name.
        cost: what it took, now or when it was computed.
        log: plain data that was noted meanwhile.
        reused: whether it comes from the cache.
    """

    tensors: dict[str, Tensor]
    cost: Cost = attrs.field(factory=Cost)
    log: tuple[Any, ...] = ()
    reused: bool = False


@attrs.frozen
class _Figures:
    """What an entry of figures holds."""

    figures: dict[str, float]
    seconds: float


@attrs.frozen(eq=False)
class Stages:
    """Computes the results of stages, or finds them.

    Attributes:
        cache: where they are kept; None keeps nothing.
        base: a hash of what all of them depend on: model, machine and code.
        rounding: what changes their last digits alone; results are kept apart by it.
        on_reuse: is told which result was found, and the seconds that this saved.
        on_wait: is told which result of another process is waited for, and whether (0 or 1) that
            is over.
        world: the processes that go through the stages together; the first looks and keeps.
    """

    cache: Cache | None = None
    base: str = ""
    rounding: str = ""
    on_reuse: Callable[[str, float], None] = lambda stage, seconds: None
    on_wait: Callable[[str, int], None] = lambda stage, over: None
    world: World = ALONE

    def key(self, kind: str, parts: Callable[[], Any]) -> str | None:
        """The key of a result; None if what it depends on cannot be told.

        Args:
            kind: what it is.
            parts: gives plain data that says what it depends on.
        """
        try:
            return digest(self.base, kind, parts())
        except Unhashable:
            return None

    def tensors(
        self,
        kind: str,
        key: str | None,
        make: Callable[[list[Any]], dict[str, Tensor]],
        *,
        stage: str,
    ) -> Outcome:
        """The result of a stage, found or computed.

        Args:
            kind: what it is; the name of its folder in the cache.
            key: from :meth:`key`; None keeps nothing.
            make: computes it; may add plain data to the list that it gets, which is kept
                as the log.
            stage: its name for ``on_reuse``.
        """

        def find() -> Outcome | None:
            kept = self.find(kind, key)
            if kept is not None:
                self.on_reuse(stage, kept.cost.seconds)
            return kept

        def compute() -> Outcome:
            log: list[Any] = []
            with Meter().running() as meter:
                made = {name: tensor.detach().cpu() for name, tensor in make(log).items()}
            outcome = Outcome(made, meter.cost, tuple(log))
            self.keep(kind, key, outcome)
            return outcome

        return self.once(kind, key, find, compute, stage=stage)

    def part(self, kind: str, key: str | None, make: Callable[[], Tensor], parts: int) -> Tensor:
        """One tensor of so many that make a stage: found in silence, its cost not measured.

        It is kept if all of them would take no more than a share of the cache. Every process
        looks for its own, and keeps them.
        """

        def find() -> Tensor | None:
            kept = self._found(kind, key)
            return kept.tensors.get("part") if kept else None

        def compute() -> Tensor:
            made = make().detach().cpu()
            if self.cache and parts * made.nbytes <= PARTS_SHARE * self.cache.limit:
                self._put(kind, key, partial(_save, Outcome({"part": made})))
            return made

        return self.once(kind, key, find, compute, stage="hidden states", together=False)

    def once(
        self,
        kind: str,
        key: str | None,
        find: Callable[[], T | None],
        compute: Callable[[], T],
        *,
        stage: str,
        together: bool = True,
    ) -> T:
        """What is found, or else computed while other processes wait for it.

        Args:
            kind, key: of the result.
            find: looks for it where it is kept; None if it is not there.
            compute: makes and keeps it.
            stage: its name for ``on_wait``.
            together: whether all processes of the world call this at the same time.
        """
        found = find()
        if found is not None or not self.cache or not key:
            return compute() if found is None else found
        with self.leased(kind, [key], stage=stage, together=together):
            # Another may have kept it before the lease was free.
            found = find()
            return compute() if found is None else found

    @contextmanager
    def leased(
        self, kind: str, keys: Iterable[str | None], *, stage: str, together: bool = True
    ) -> Iterator[None]:
        """Have other processes wait for results during the block, after waiting for theirs.

        Args:
            kind: of the results; the arguments are those of :meth:`once`.
            keys: of all of them.
        """
        world = self.world if together else ALONE
        cache, known = self.cache, sorted(self._kept_as(key) for key in set(keys) if key)
        if cache is None:
            yield
            return

        with ExitStack() as stack:
            for key in known:
                lease = cache.leases.of(kind, key)
                stack.callback(lease.release)

                def asked(lease: Lease = lease) -> bool:
                    # Whoever finds leases in a folder without a mark would take it for another's.
                    return not cache.opened() or lease.asked(ROUND_SECONDS, self._tell(stage))

                while not world.agreed(asked):
                    pass
            yield

    def entry(self, kind: str, key: str | None) -> Path | None:
        """The file of a result that was kept, or None."""
        return self.cache.find(kind, self._kept_as(key)) if self.cache and key else None

    def put(self, kind: str, key: str | None, write: Callable[[Path], None]) -> Path | None:
        """Keep what ``write`` writes as a file of tensors; None where that is not kept."""
        return self._put(kind, key, write) if self.world.leads else None

    def _put(self, kind: str, key: str | None, write: Callable[[Path], None]) -> Path | None:
        if not self.cache or not key:
            return None
        return self.cache.put(kind, self._kept_as(key), ".safetensors", write)

    def find(self, kind: str, key: str | None) -> Outcome | None:
        """A result that was kept, or None."""
        return self.world.agreed(partial(self._found, kind, key))

    def _found(self, kind: str, key: str | None) -> Outcome | None:
        path = self.entry(kind, key)
        if path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except OSError:
            # Another process has just made room.
            return None
        except (SafetensorError, ValueError) as error:
            self._reject(path, error)
            return None
        try:
            cost = converted(parse_json(metadata.get("cost", "{}"), str(path)), Cost, str(path))
            log = converted(parse_json(metadata.get("log", "[]"), str(path)), list, str(path))
        except UserError as error:
            self._reject(path, error)
            return None
        return Outcome(tensors, cost, tuple(log), reused=True)

    def keep(self, kind: str, key: str | None, outcome: Outcome) -> None:
        """Keep a result for the runs to come."""
        self.put(kind, key, partial(_save, outcome))

    def figures(
        self, kind: str, key: str | None, make: Callable[[], dict[str, float]], *, stage: str
    ) -> dict[str, float]:
        """Numbers by name; the arguments are those of :meth:`tensors`."""

        def find() -> dict[str, float] | None:
            known = self.world.agreed(partial(self._known, kind, key))
            if known is None:
                return None
            self.on_reuse(stage, known.seconds)
            return known.figures

        def compute() -> dict[str, float]:
            began = time.perf_counter()
            made = make()
            kept = {"figures": made, "seconds": time.perf_counter() - began}
            if self.cache and key and self.world.leads:
                self.cache.put(
                    kind,
                    self._kept_as(key),
                    ".json",
                    lambda path: _write(path, json.dumps(kept, indent=1)),
                )
            return made

        return self.once(kind, key, find, compute, stage=stage)

    def _known(self, kind: str, key: str | None) -> _Figures | None:
        path = self.entry(kind, key)
        if path is None:
            return None
        try:
            return converted(read_json(path), _Figures, str(path))
        except UserError as error:
            self._reject(path, error)
            return None

    def _tell(self, stage: str) -> Callable[[str, bool], None]:
        return lambda whose, over: self.on_wait(f"{stage}: waiting for {whose}", int(over))

    def _reject(self, path: Path, error: Exception) -> None:
        """Give up an entry that is whole, but holds what no stage writes."""
        if self.cache:
            why = error.message if isinstance(error, UserError) else str(error)
            self.cache.reject(path, why)

    def _kept_as(self, key: str) -> str:
        return digest(key, self.rounding)


def _save(outcome: Outcome, path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in outcome.tensors.items()}
    cost, log = json.dumps(attrs.asdict(outcome.cost)), json.dumps(outcome.log)
    save_file(tensors, path, metadata={"cost": cost, "log": log})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
