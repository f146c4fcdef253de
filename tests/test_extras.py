"""What is missing where something is to be pruned is said, with what installs it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import permllm
from permllm import extras
from permllm.commands import pip_install
from permllm.errors import UserError

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in names else found(name))


def test_the_packages_are_those_of_the_extra_and_imported_by_their_names() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    named = sorted(Requirement(line).name for line in project["optional-dependencies"]["prune"])
    assert extras.pruning_packages() == named, "install permllm anew: its metadata is older"
    assert "mlflow" in named
    assert not set(named) & {Requirement(line).name for line in project["dependencies"]}
    assert extras.missing_for_pruning() == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mlflow"], "mlflow is"),
        (["mlflow", "ruamel.yaml"], "mlflow and ruamel.yaml are"),
        (["mlflow", "cattrs", "numba"], "cattrs, mlflow and numba are"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, names: list[str], said: str
) -> None:
    extras.need_prune("this")
    without(monkeypatch, *names)
    with pytest.raises(UserError) as caught:
        extras.need_prune("this")
    assert caught.value.message == f"this needs permllm[prune], of which {said} missing"
    assert caught.value.hint == pip_install("permllm[prune]")
    assert sorted(names) == extras.missing_for_pruning()


def test_only_what_is_needed_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "mlflow")
    extras.need_prune("this", "gguf")
    with pytest.raises(UserError, match="of which mlflow is missing"):
        extras.need_prune("this", "gguf", "mlflow")
    # The namespace that it stands in is missing, too.
    assert extras.missing_for_pruning(["absent.yaml"]) == ["absent.yaml"]


def test_sources_that_are_not_installed_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    without(monkeypatch, "mlflow")
    extras.need_prune("this")


@pytest.mark.parametrize("name", ["run", "prune", "Pruned"])
def test_functions_that_prune_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert getattr(permllm, name).__name__ == name
    without(monkeypatch, "numba")
    with pytest.raises(UserError, match=rf"permllm\.{name} needs .* of which numba is missing"):
        getattr(permllm, name)


def test_a_cluster_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    extras.need_ray("--on ray")
    without(monkeypatch, "ray")
    with pytest.raises(UserError, match=r"--on ray needs permllm\[ray\], .*") as caught:
        extras.need_ray("--on ray")
    assert caught.value.hint == pip_install("permllm[ray]")
