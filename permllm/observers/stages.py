"""Where a run is: the stage in progress, how far it is, how long it will take."""

from __future__ import annotations

import attrs

from permllm.units import number


@attrs.define
class Stage:
    """One stage of a run, such as the learning of a window.

    Attributes:
        label: the run's label, or None before the first run.
        name: what is being done.
        began: when, in seconds of a monotonic clock.
        total: units of the whole stage.
        done: units that are finished.
        changed: when ``done`` last changed.
        first: ``done`` when the stage began, and nothing can be said on its speed.
    """

    label: str | None
    name: str
    began: float
    total: int
    done: int = 0
    changed: float = 0.0
    first: int = 0

    def advance(self, done: int, total: int, now: float) -> None:
        """Take in a progress report; the total may change, as with training for a time."""
        if done != self.done or total != self.total:
            self.changed = now
        self.done, self.total = done, total

    @property
    def measurable(self) -> bool:
        """Whether it has parts, so that a share and a speed can be told."""
        return self.total > 1

    @property
    def finished(self) -> bool:
        """Whether all units are done."""
        return self.done >= self.total

    @property
    def share(self) -> float:
        """The finished share, 0 to 1."""
        return min(1.0, self.done / max(1, self.total))

    def left(self, now: float) -> float | None:
        """Seconds that it will still take at its speed so far; None if that is unknown."""
        gained = self.done - self.first
        if not self.measurable or gained <= 0:
            return None
        speed = (self.changed - self.began) / gained
        return max(0.0, speed * (self.total - self.done) - (now - self.changed))


def started(label: str | None, name: str, done: int, total: int, now: float) -> Stage:
    """A stage of which the first report says ``done`` of ``total``.

    A stage that reports itself only when its first unit is finished (``done`` is 1)
    has no known beginning, so its speed counts from there.
    """
    return Stage(label, name, now, total, done, now, first=done)


def span(layers: tuple[str, ...]) -> str:
    """The module names of a window's layers in short.

    >>> span(("model.layers.0", "model.layers.1", "model.layers.2")), span(("h.3",))
    ('model.layers.0 to 2', 'h.3')
    """
    first, last = layers[0], layers[-1]
    return first if first == last else f"{first} to {last.rpartition('.')[2]}"


def evaluation_line(figures: dict[str, float]) -> str:
    """The figures of a run in one line: ``perplexity/python-docs 16.84, sparsity 0.5``."""
    return ", ".join(f"{name} {number(value)}" for name, value in figures.items())


def training_line(figures: dict[str, float], step: int, looked: tuple[int, float] | None) -> str:
    """The figures of a training step that a person follows, in one line.

    Args:
        figures: of the step.
        step: its number.
        looked: the step at which the held-out loss was measured last, and the loss.

    >>> training_line({"loss": 0.5, "temperature": 0.1}, 7, (4, 0.75))
    'loss 0.5, held-out loss 0.75 at step 4, temperature 0.1'
    """
    parts = {name: number(figures[name]) for name in ("loss", "temperature") if name in figures}
    texts = [f"{name} {value}" for name, value in parts.items()]
    if looked is not None:
        at = "" if looked[0] == step else f" at step {looked[0]}"
        texts.insert(1, f"held-out loss {number(looked[1])}{at}")
    return ", ".join(texts)
