"""The contract of a plugin as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from permllm.testing import check_plugin

GOOD = '''\
import permllm


@permllm.hookimpl
def permllm_metrics():
    import attrs
    from permllm.components import Metric

    @attrs.frozen
    class Flat(Metric):
        """The weight's absolute value."""

        name = "flat"

        def scores(self, weight, statistics):
            return weight.abs()

    return [Flat]
'''


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("tested_plugin", None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (GOOD, None),
        (GOOD.replace("metrics", "metric"), "there is no hook 'permllm_metric'"),
        (GOOD.replace("@permllm.hookimpl\n", ""), "it has no hooks"),
        (
            GOOD.replace('"flat"', '"flatt"'),
            r"adds \{'metric': \['flatt'\]\}, where \{'metric': \[",
        ),
        (GOOD.replace("    @attrs.frozen\n", ""), "is not a frozen attrs class"),
        (f"import torch\n{GOOD}", r"to import it imports \['torch'\]; import components inside"),
    ],
    ids=["good", "hook", "unmarked", "name", "class", "heavy"],
)
def test_check_plugin(tmp_path: Path, source: str, message: str | None) -> None:
    (tmp_path / "tested_plugin.py").write_text(source, encoding="utf-8")
    if message is None:
        check_plugin("tested_plugin", adds={"metric": ["flat"]})
        return
    with pytest.raises(AssertionError, match=message):
        check_plugin("tested_plugin", adds={"metric": ["flat"]})


def test_observers_of_every_run_add_nothing(tmp_path: Path) -> None:
    source = GOOD[: GOOD.index("def ")] + "def permllm_warning(message):\n    print(message)\n"
    (tmp_path / "tested_plugin.py").write_text(source, encoding="utf-8")
    check_plugin("tested_plugin", adds={})
