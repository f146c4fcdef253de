"""Which windows are done at the same time."""

from __future__ import annotations


def turns(windows: int, inputs: str, processes: int) -> list[range]:
    """The windows in the order in which they are done, each turn one or several.

    Windows that see what dense layers hand on do not depend on each other: as long as there is one
    for each process, they are done side by side. What is left over is done one after the other,
    each by all.

    Args:
        windows: how many there are.
        inputs: of each, ``dense`` or ``pruned``.
        processes: that share the work.
    """
    at_once = processes if inputs == "dense" else 1
    rest = windows - windows % at_once
    together = [range(first, first + at_once) for first in range(0, rest, at_once)]
    return [*together, *(range(index, index + 1) for index in range(rest, windows))]
