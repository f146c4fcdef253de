"""The range of permllm that a plugin was made for, and packages that it lacks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.plugins.requirements import incompatibility, missing_dependency

Package = Callable[..., Distribution]

TOO_OLD = "pip install 'permllm>=0.2'"
TOO_NEW = "pip install --upgrade permllm-x, or pip install 'permllm<0.1'"


@pytest.mark.parametrize(
    ("needs", "version", "expected"),
    [
        (["permllm>=0.1,<0.2"], "0.1.5", None),
        (["permllm"], "7", None),
        (["attrs>=99"], "0.1.0", None),
        (["permllm>=0.1"], "0.2.0.dev1", None),
        (["permllm==0.1.*"], "0.1.3", None),
        (["permllm>=9; python_version < '3'"], "0.1.0", None),
        (["permllm>=9; extra == 'next'"], "0.1.0", None),
        (["((permllm"], "0.1.0", None),
        (
            ["PermLLM >= 0.2"],
            "0.1.0",
            f"it needs permllm>=0.2, and this is permllm 0.1.0: {TOO_OLD}",
        ),
        (["permllm<0.1"], "0.1.0", f"it needs permllm<0.1, and this is permllm 0.1.0: {TOO_NEW}"),
        (["permllm<0.3,>=0.2"], "0.1.0", "it needs permllm>=0.2,<0.3, and this is"),
        (["permllm==0.3.*"], "0.1.0", "pip install 'permllm==0.3.*'"),
        (["permllm[prune]<0.3,>=0.2"], "0.1.0", "pip install 'permllm[prune]>=0.2,<0.3'"),
        (["permllm~=0.0.4"], "0.1.0", "pip install --upgrade permllm-x"),
        (["permllm!=0.1.0"], "0.1.0", "pip install --upgrade permllm-x"),
    ],
)
def test_range_of_permllm(
    package: Package, needs: list[str], version: str, expected: str | None
) -> None:
    found = incompatibility(package("permllm-x", requires=needs, extras=["next"]), version)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert expected in found


numbers = st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 3))


@given(bounds=st.tuples(numbers, numbers).map(sorted), mine=numbers)
def test_what_to_upgrade_follows_from_the_side_of_the_range(
    bounds: list[tuple[int, int, int]], mine: tuple[int, int, int]
) -> None:
    low, high = (".".join(map(str, bound)) for bound in bounds)
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "x-1.dist-info"
        info.mkdir()
        text = (
            f"Metadata-Version: 2.1\nName: x\nVersion: 1\nRequires-Dist: permllm>={low},<{high}\n"
        )
        (info / "METADATA").write_text(text, encoding="utf-8")
        found = incompatibility(Distribution.at(info), ".".join(map(str, mine)))
    if bounds[0] <= mine < bounds[1]:
        assert found is None
    else:
        assert found is not None
        assert ("--upgrade x" in found) == (mine >= bounds[0])


REQUIRES = [
    "absent-one>=2",
    "pytest",
    "pillow-of-nobody; extra == 'pictures'",
    "absent-two; extra == 'fast'",
    "attrs>=999; extra == 'fast'",
    "click",
]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("absent_one.sub", "pip install permllm-x"),
        ("absent_two", "pip install 'permllm-x[fast]'"),
        ("PIL_of_nobody", "pip install permllm-x"),
        ("permllm_x.helpers", None),
        ("attrs.not_in_this_version", "pip install 'permllm-x[fast]'"),
        ("click.not_in_any_version", None),
    ],
)
def test_missing_dependency(
    package: Package,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
    expected: str | None,
) -> None:
    package("permllm-x", requires=REQUIRES, extras=["pictures", "fast"])
    monkeypatch.syspath_prepend(tmp_path)
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert missing_dependency("permllm-x", error) == expected
    wrapped = ImportError("x needs more")
    wrapped.__cause__ = error
    assert missing_dependency("permllm-x", wrapped) == expected
    assert missing_dependency("permllm-x", ImportError("cannot import name 'y'")) is None
    assert missing_dependency("", error) is None
    assert missing_dependency("a-package-of-nobody", error) is None


def test_a_dependency_that_nobody_states(
    package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package("permllm-x", requires=["pytest"])
    monkeypatch.syspath_prepend(tmp_path)
    found = missing_dependency("permllm-x", ModuleNotFoundError("gone", name="gone"))
    assert found == "permllm-x does not say which package has 'gone': tell its authors"


def test_a_module_that_is_called_otherwise_than_its_package(
    package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs = ["pytest", "scikit-of-nobody; extra == 'plots'"]
    package("permllm-x", requires=needs, extras=["plots"])
    monkeypatch.syspath_prepend(tmp_path)
    error = ModuleNotFoundError("no sk", name="sk_of_nobody")
    assert missing_dependency("permllm-x", error) == "pip install 'permllm-x[plots]'"
