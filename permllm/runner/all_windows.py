"""Prunes all windows of a model: one after the other, or several at a time by as many processes."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from permllm.runner.reporting import Noted
from permllm.runner.turns import turns
from permllm.runner.window_loop import WindowLoop
from permllm.runs.windows import (
    PrunedWindow,
    joined,
    load_window,
    mapped_weights,
    window_path,
)
from permllm.world import World

WAITING = "waiting for the windows of other processes"


def all_pruned(loop: WindowLoop) -> PrunedWindow:
    """Prune all windows of a loop that is at the first; the result covers the whole model."""
    loop.warn_if_nothing_moves()
    world, folder = loop.stages.world, loop.directory
    processes = world.size if world.many and folder else 1
    windows: list[PrunedWindow] = []
    for turn in turns(len(loop.spans), loop.pipeline.layers.inputs, processes):
        if folder and len(turn) > 1:
            made = _side_by_side(loop, turn, folder)
        else:
            made = [loop.pruned(turn.start)]
            loop.streams.later(loop.spans[turn.start], made[0].weights)
        for window in made:
            # What follows a window of another number of threads is no result to share.
            same = window.threads == torch.get_num_threads()
            loop.keys.passed(window.key or None if same else None)
        windows += made
    return joined(windows, key=loop.keys.model())


def _side_by_side(loop: WindowLoop, turn: range, folder: Path) -> list[PrunedWindow]:
    """One window for each process, which prunes and keeps it as if there were no others.

    Together they move the stream through all of them first. What observers are to hear of the
    windows, the first process tells: of its own at once, of the others' afterwards, in order.
    """
    world, hook = loop.stages.world, loop.reporter.hook
    noted = Noted()
    paths = [window_path(folder, index) for index in turn]
    wanted = world.agreed(lambda: not all(path.exists() for path in paths))
    for index in turn:
        if wanted:
            loop.catch_up(index)
        if index == turn[world.rank]:
            own = loop.apart(index, hook if world.leads else noted)
        loop.streams.later(loop.spans[index], {})
    own.pruned(turn[world.rank])
    loop.reporter.progress(WAITING, 0, 1)
    world.met(str(paths[0]))
    loop.reporter.progress(WAITING, 1, 1)
    for event in world.gathered(noted.events):
        event.tell(hook, loop.reporter.run)
    return [_kept(path, world) for path in paths]


def _kept(path: Path, world: World) -> PrunedWindow:
    """A window that a process has just kept, or found to be whole; its weights are mapped."""
    world.look_for(path)
    return attrs.evolve(load_window(path, weights=False), weights=mapped_weights(path))
