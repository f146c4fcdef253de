"""Where a training stands, kept from time to time, so that one that is killed goes on there.

Parameters, the optimiser's moments, the best result so far and the course of the steps are all
that a training is made of; which sequences come next follows from the window's seed. So it goes
on to the same bits, unless it works against the clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from permllm.core.digest import tensor_digest

if TYPE_CHECKING:
    from permllm.contexts.window import Window
    from permllm.training.budget import StepCount

KEEP_SECONDS = 300.0
"""A training is kept so often, at most."""

TIMES_WRITING = 100
"""Nor is it before it has gone on for so many times as long as the last writing took."""

MOST_BYTES = 4 * 2**30
"""A training that holds more is not kept: it would be in memory twice while it is written."""

SAMPLE = 1024
"""Entries of each parameter that tell how a training began."""

PARAMETER, MOMENT, RESULT, FACTS = "parameter/", "moment/", "result/", "facts"
"""What the names of kept tensors begin with; the facts are JSON in bytes."""


@attrs.define
class Stand:
    """How far a training has come.

    Attributes:
        total: steps in all, as far as is known.
        batch: sequences per step.
        step: the last step that was made.
        looked: the step after which held-out text was looked at last.
        least: the least loss on it.
        skipped: steps whose loss or gradient was no number.
        parts, look_parts: how many sequences memory has room for, in a step and in a look.
        spent, stepped: seconds of the whole training, and of that since its first step.
        course: of every step, how many there would be in all, and its figures.
    """

    total: int
    batch: int
    step: int = 0
    looked: int = 0
    least: float = float("inf")
    skipped: int = 0
    parts: int | None = None
    look_parts: int | None = None
    spent: float = 0.0
    stepped: float | None = None
    course: list[tuple[int, dict[str, float]]] = attrs.field(factory=list)


class TrainingCheckpoint:
    """Keeps a training in the run's folder, and finds where an earlier attempt was.

    Args:
        title: tells the trainings of one component apart.
        optimiser: of the training's parameters, as they are at its beginning; None for one that
            cannot go on from them.
        window: what is trained through.
    """

    def __init__(self, title: str, optimiser: torch.optim.Optimizer | None, window: Window) -> None:
        self.title, self.window = title, window
        self.optimiser = optimiser if window.checkpoints.work else None
        parameters = _parameters(self.optimiser) if self.optimiser else []
        self.began = [_sampled(one) for one in parameters]
        self.kept_at, self.writing = time.monotonic() if self.optimiser else 0.0, 0.0

    def found(self) -> tuple[Stand, dict[str, Tensor] | None] | None:
        """Where the training was, and its best result; parameters and moments are set to that.

        None where nothing was kept of a training that began as this one.
        """
        kept = None if self.optimiser is None else self.window.kept(self.title)
        if self.optimiser is None or kept is None:
            return None
        facts = json.loads(kept.pop(FACTS).numpy().tobytes())
        if facts["began"] != self.began:
            return None
        with torch.no_grad():
            for index, parameter in enumerate(_parameters(self.optimiser)):
                parameter.copy_(kept[f"{PARAMETER}{index}"])
        _set_moments(self.optimiser, facts["moments"], kept)
        result = facts["result"]
        if result is not None:
            result = {name: kept[f"{RESULT}{name}"].to(device) for name, device in result.items()}
        stand = facts["stand"]
        course = [(total, figures) for total, figures in stand.pop("course")]
        return Stand(**stand, course=course), result

    def keep(self, stand: Stand, result: Any, count: StepCount) -> None:
        """Keep the training, if the last time is long ago.

        Args:
            stand: how far it is.
            result: the best so far, or None. One that is no mapping of tensors cannot be kept.
            count: knows how much of a time is spent.
        """
        if self.optimiser is None:
            return
        pause = max(KEEP_SECONDS, TIMES_WRITING * self.writing)
        if (began := time.monotonic()) - self.kept_at < pause:
            return
        stand.spent, stand.stepped = count.spent()
        tensors = _kept(self.optimiser, self.began, stand, result)
        if tensors is None or sum(one.nbytes for one in tensors.values()) > MOST_BYTES:
            self.optimiser = None
            return
        self.window.keep(self.title, tensors)
        self.kept_at = time.monotonic()
        self.writing = self.kept_at - began


def _kept(
    optimiser: torch.optim.Optimizer, began: list[str], stand: Stand, result: Any
) -> dict[str, Tensor] | None:
    """All that is to be kept; None where some of it is neither a tensor nor plain data."""
    tensors, moments = _state(optimiser)
    facts = {"began": began, "moments": moments, "result": None, "stand": attrs.asdict(stand)}
    if result is not None:
        if not _is_mapping_of_tensors(result):
            return None
        facts["result"] = {name: str(one.device) for name, one in result.items()}
        tensors |= {f"{RESULT}{name}": one for name, one in result.items()}
    try:
        plain = json.dumps(facts).encode()
    except TypeError:
        return None
    return tensors | {FACTS: torch.frombuffer(bytearray(plain), dtype=torch.uint8)}


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [one for settings in optimiser.param_groups for one in settings["params"]]


def _sampled(parameter: Tensor) -> str:
    """A hash of a parameter's shape and of some of its entries."""
    flat = parameter.detach().reshape(-1)
    step = max(1, len(flat) // SAMPLE)
    return tensor_digest(torch.cat([flat[::step], flat.new_tensor([len(flat)])]))


def _state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters and moments as tensors, and what else the optimiser notes of a parameter."""
    tensors = {f"{PARAMETER}{index}": one for index, one in enumerate(_parameters(optimiser))}
    plain: dict[str, Any] = {}
    for index, moments in optimiser.state_dict()["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor):
                tensors[f"{MOMENT}{index}/{name}"] = value
            else:
                plain[f"{index}/{name}"] = value
    return tensors, plain


def _set_moments(
    optimiser: torch.optim.Optimizer, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    held = dict(plain) | {
        name.removeprefix(MOMENT): one for name, one in tensors.items() if name.startswith(MOMENT)
    }
    state: dict[int, dict[str, Any]] = {}
    for place, value in held.items():
        index, _, name = place.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )


def _is_mapping_of_tensors(result: Any) -> bool:
    return isinstance(result, Mapping) and all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in result.items()
    )
