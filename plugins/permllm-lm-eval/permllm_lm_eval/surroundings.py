"""What the harness may change and print, kept from the rest of the program.

Everything that is set here is as before once the block ends, whatever happens in it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import numpy as np
import torch

PYTHON_SEED, OTHER_SEED = 0, 1234
"""The harness's own seeds: of Python's generator, and of NumPy's and torch's."""

LOGGERS = ("lm_eval", "datasets", "evaluate", "huggingface_hub", "transformers")
"""Loggers that would write to the screen."""

SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
)
"""The attributes of modules that keep them from the network."""

METRICS_SWITCH = ("evaluate.config", "HF_EVALUATE_OFFLINE")
"""The same of a module that takes seconds to import and is seldom needed."""


@contextmanager
def kept_environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the block, and undo every change made to any."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries of Hugging Face from the network for the block.

    They read the environment when they are imported, and from then on look at switches
    of their own.
    """
    # Imported before the environment changes, so that their switches say what the user said.
    import datasets.config
    import huggingface_hub.constants  # noqa: F401

    module, name = METRICS_SWITCH
    wish = os.environ.get(name, "").upper() in datasets.config.ENV_VARS_TRUE_VALUES
    kept = {switch: getattr(sys.modules[switch[0]], switch[1]) for switch in SWITCHES}
    kept[METRICS_SWITCH] = getattr(sys.modules.get(module), name, wish)
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", name: "1"}
    try:
        _set(dict.fromkeys(kept, True))
        with kept_environment(**variables):
            yield
    finally:
        _set(kept)


def _set(values: dict[tuple[str, str], Any]) -> None:
    for (module, name), value in values.items():
        if module in sys.modules:
            setattr(sys.modules[module], name, value)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed all random numbers for the block.

    Args:
        seed: None for the harness's own seeds.
    """
    python, numpy = random.getstate(), np.random.get_state()
    other = OTHER_SEED if seed is None else seed
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(PYTHON_SEED if seed is None else seed)
            np.random.seed(other)
            torch.manual_seed(other)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep bars, log lines, warnings and prints off the screen for the block.

    Yields:
        the errors that were logged, as they come.
    """
    errors: list[str] = []
    with (
        _captured(errors),
        _no_bars(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield errors


def aloud(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """A function as it is, but what it prints is seen when it is called in a quiet block.

    Args:
        report: is told how far something is.
    """
    screen = sys.stdout

    def call(done: int, total: int) -> None:
        with contextlib.redirect_stdout(screen):
            report(done, total)

    return call


@contextmanager
def _no_bars() -> Iterator[None]:
    """Disable all bars that are made in the block: not all of the harness's can be by option."""
    from tqdm.std import tqdm

    kept, original = vars(tqdm)["__init__"], tqdm.__init__
    tqdm.__init__ = partialmethod(_disabled, original)
    try:
        yield
    finally:
        tqdm.__init__ = kept


def _disabled(bar: Any, original: Any, *args: Any, **options: Any) -> None:
    original(bar, *args, **options | {"disable": True})


@contextmanager
def _captured(errors: list[str]) -> Iterator[None]:
    """Add the errors that are logged to a list, and show nothing that is."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    kept = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    handler = _Collector(errors)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
            logger.handlers, logger.propagate = [handler], False
        yield
    finally:
        for logger, (level, handlers, propagate) in zip(loggers, kept, strict=True):
            logger.setLevel(level)
            logger.handlers, logger.propagate = handlers, propagate


class _Collector(logging.Handler):
    """Adds messages to a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message's text."""
        self.messages.append(record.getMessage())
