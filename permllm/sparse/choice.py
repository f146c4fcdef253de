"""Which of several ways to the same product is the fastest, by a measurement that is kept.

The ways add up in another order, and so round otherwise; since what was measured is kept in a file,
a machine takes the same way every time.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations_with_replacement
from pathlib import Path

import attrs
from torch import Tensor

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""Numbers of tokens that are measured."""

ROUNDS = 5
"""How often each way is tried, in turns: the fastest time counts, which others disturb least."""

Product = Callable[[Tensor], Tensor]
"""From ``[tokens, C_in]`` to ``[tokens, C_out]``."""


def fastest(ways: Mapping[str, Product], x: Tensor) -> tuple[str, ...]:
    """The fastest way for each of :data:`COUNTS`.

    Where one way is the faster, it is so for all larger numbers or for all smaller ones; so what
    others disturb in a single time does not count.

    Args:
        ways: by name, those for few tokens first.
        x: ``[512, C_in]``.
    """
    times = [_seconds(ways, x[:count]) for count in COUNTS]
    return best_in_turn(tuple(ways), times)


def best_in_turn(names: tuple[str, ...], times: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """For each of some times by name a name, none before the last one's, of the least product."""

    def total(chosen: tuple[str, ...]) -> float:
        return sum(math.log(one[name]) for one, name in zip(times, chosen, strict=True))

    return min(combinations_with_replacement(names, len(times)), key=total)


def of_tokens(names: tuple[str, ...], tokens: int) -> str:
    """The way for so many tokens: that of the next number that was measured, or of the last."""
    return next(
        (name for count, name in zip(COUNTS, names, strict=True) if tokens <= count), names[-1]
    )


@attrs.define
class Choices:
    """What was measured on this machine.

    Attributes:
        path: the file that keeps it. Where it cannot be read it is measured again, and where
            it cannot be written, by every process.
        known: by key, what :func:`fastest` gave.
    """

    path: Path
    known: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, repr=False)

    def of(
        self, key: str, names: tuple[str, ...], measure: Callable[[], tuple[str, ...]]
    ) -> tuple[str, ...]:
        """What is known of a key, measured if nothing is.

        Args:
            key: what it depends on.
            names: of the ways that there are.
            measure: gives one of them for each of :data:`COUNTS`.
        """
        with self._lock:
            if key not in self.known:
                kept = self._kept().get(key)
                if _fits(kept, names):
                    self.known[key] = tuple(kept)  # type: ignore[arg-type]
                else:
                    self.known[key] = measure()
                    self._keep()
            return self.known[key]

    def _kept(self) -> dict[str, object]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep(self) -> None:
        """Write the file, all at once: of two processes that measure, either may win."""
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
            whole = Path(folder) / self.path.name
            whole.write_text(json.dumps(self._kept() | self.known, indent=1), encoding="utf-8")
            whole.replace(self.path)


def _fits(kept: object, names: tuple[str, ...]) -> bool:
    return isinstance(kept, list) and len(kept) == len(COUNTS) and all(one in names for one in kept)


def _seconds(ways: Mapping[str, Product], x: Tensor) -> dict[str, float]:
    best = dict.fromkeys(ways, math.inf)
    for _ in range(ROUNDS):
        for name, product in ways.items():
            began = time.perf_counter()
            product(x)
            best[name] = min(best[name], time.perf_counter() - began)
    return best
