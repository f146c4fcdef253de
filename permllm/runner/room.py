"""What is said where memory has no room for a part of a run, and what would take less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from permllm.components import components_in
from permllm.errors import RunFailed
from permllm.exhaustion import asked_for, out_of_memory
from permllm.pipeline.schema import Pipeline


@contextmanager
def room_for(what: str, pipeline: Pipeline, layers: int = 1) -> Iterator[None]:
    """Say of an allocation that fails in the block what it was for, and what to change.

    Args:
        what: is done in the block, such as ``pruning layers 0 to 3``.
        pipeline: what the run does.
        layers: that are worked on at once.

    Raises:
        RunFailed: there was no room. Other errors are left as they are.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise RunFailed(
            f"out of memory in {what}: {_detail(error)}; less room is taken by "
            f"{', '.join(smaller(pipeline, layers))}"
        ) from error


def smaller(pipeline: Pipeline, layers: int) -> list[str]:
    """The options that take less memory than as they are, those that take most of it first."""
    calibration, window = pipeline.calibration, pipeline.layers.window
    hints = ["stream: always"] if pipeline.stream != "always" else []
    hints += [f"a smaller layers.window (it is {window})"] if layers > 1 else []
    training = [one for one in components_in(pipeline.layers) if hasattr(one, "recompute")]
    if training and not all(one.recompute for one in training):
        hints.append("recompute: true")
    if training and not all(getattr(one, "precision", "") == "bfloat16" for one in training):
        hints.append("precision: bfloat16")
    if pipeline.dtype != "bfloat16":
        hints.append("dtype: bfloat16")
    if calibration.batch_size > 1:
        hints.append(f"a smaller calibration.batch_size (it is {calibration.batch_size})")
    return [
        *hints,
        f"shorter calibration.length (it is {calibration.length})",
        f"fewer calibration.sequences (there are {calibration.sequences})",
    ]


def _detail(error: Exception) -> str:
    if isinstance(error, RunFailed):
        return str(error)
    asked = asked_for(error)
    if asked:
        return f"{asked} were asked for"
    return str(error).strip().partition("\n")[0] or type(error).__name__
