from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import datasets.config
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from permllm_lm_eval import surroundings
from tqdm import tqdm

NAMES = st.sampled_from(["PERMLLM_TEST_A", "PERMLLM_TEST_B", "PERMLLM_TEST_C"])
VARIABLES = st.dictionaries(NAMES, st.sampled_from(["", "0", "some"]))


@contextmanager
def broken(block: AbstractContextManager[Any]) -> Iterator[Any]:
    """A block that ends with an error."""
    with suppress(ArithmeticError), block as value:
        yield value
        raise ArithmeticError


@given(before=VARIABLES, given_=VARIABLES, added=VARIABLES, removed=st.sets(NAMES))
def test_the_environment_is_restored(
    before: dict[str, str], given_: dict[str, str], added: dict[str, str], removed: set[str]
) -> None:
    with surroundings.kept_environment(**before):
        outside = dict(os.environ)
        with broken(surroundings.kept_environment(**given_)):
            assert dict(os.environ) == outside | given_
            os.environ.update(added)
            for name in removed:
                os.environ.pop(name, None)
        assert dict(os.environ) == outside


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("seed", [None, 0, 1234])
def test_random_numbers_are_seeded_and_restored(seed: int | None) -> None:
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = draws()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    with broken(surroundings.seeded(seed)):
        inside = draws()
    assert draws() == expected
    random.seed(0 if seed is None else seed)
    np.random.seed(1234 if seed is None else seed)
    torch.manual_seed(1234 if seed is None else seed)
    assert inside == draws()


def switches() -> list[Any]:
    evaluate = sys.modules.get("evaluate.config")
    return [
        huggingface_hub.constants.HF_HUB_OFFLINE,
        datasets.config.HF_HUB_OFFLINE,
        datasets.config.HF_DATASETS_OFFLINE,
        evaluate.HF_EVALUATE_OFFLINE if evaluate else None,
    ]


def test_offline_is_switched_on_and_back() -> None:
    before = switches()
    assert not any(before)
    with broken(surroundings.offline()):
        assert all(value is True for value in switches() if value is not None)
        assert huggingface_hub.constants.is_offline_mode()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert switches() == before
    assert "HF_HUB_OFFLINE" not in os.environ


def test_what_is_imported_offline_is_online_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        """Stands for evaluate.config, which takes seconds to import."""

        HF_EVALUATE_OFFLINE = False

    monkeypatch.delitem(sys.modules, "evaluate.config", raising=False)
    with surroundings.offline():
        Config.HF_EVALUATE_OFFLINE = os.environ["HF_EVALUATE_OFFLINE"] == "1"
        monkeypatch.setitem(sys.modules, "evaluate.config", Config)  # type: ignore[arg-type]
    assert Config.HF_EVALUATE_OFFLINE is False


def say_everything() -> None:
    print("printed")
    warnings.warn("warned", stacklevel=1)
    for name in ("lm_eval", "lm_eval.api.task", "datasets.builder", "transformers"):
        logging.getLogger(name).error("logged by %s", name)
        logging.getLogger(name).warning("not worth it")
    for _ in tqdm(range(3), disable=False):
        pass
    with tqdm(total=2) as bar:
        bar.update(2)


def test_nothing_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in surroundings.LOGGERS]
    before = [(one.level, list(one.handlers), one.propagate) for one in loggers]
    make = vars(tqdm)["__init__"]
    with broken(surroundings.quiet()) as errors:
        say_everything()
    assert capfd.readouterr() == ("", "")
    assert errors == [
        f"logged by {name}"
        for name in ("lm_eval", "lm_eval.api.task", "datasets.builder", "transformers")
    ]
    assert [(one.level, list(one.handlers), one.propagate) for one in loggers] == before
    assert vars(tqdm)["__init__"] is make
    with pytest.warns(UserWarning, match="warned"):
        say_everything()
    out, err = capfd.readouterr()
    assert out == "printed\n"
    assert "3/3" in err


def test_progress_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    report: Callable[[int, int], None] = surroundings.aloud(print)
    with surroundings.quiet():
        print("hidden")
        report(1, 2)
    assert capsys.readouterr().out == "1 2\n"
