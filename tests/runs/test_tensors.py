"""Files of tensors give what was written, or an error that names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from permllm.errors import UserError
from permllm.runs.tensors import DIGESTS, read_facts, read_tensors, save_tensors

TENSORS = {"a": torch.arange(4.0), "b": torch.tensor([True, False])}


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new/file.safetensors"
    save_tensors(path, "form-1", TENSORS, {"least": float("inf"), "names": ["x"]})
    facts = read_facts(path, "form-1", "thing")
    assert facts.keys() == {"least", "names", DIGESTS}
    assert (facts["least"], facts["names"]) == (float("inf"), ["x"])
    found = read_tensors(path, facts[DIGESTS], ["b"], "thing")
    assert found.keys() == {"b"}
    assert torch.equal(found["b"], TENSORS["b"])


def test_another_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_tensors(path, "form-1", TENSORS, {})
    with pytest.raises(UserError, match="is not a thing of this version"):
        read_facts(path, "form-2", "thing")
    save_file(TENSORS, path)
    with pytest.raises(UserError, match="is not a thing of this version"):
        read_facts(path, "form-1", "thing")


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_what_is_no_such_file_is_damaged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the thing .* is damaged"):
        read_facts(path, "form-1", "thing")
    with pytest.raises(UserError, match=r"the thing .* is damaged"):
        read_tensors(path, {}, ["a"], "thing")


def test_a_tensor_that_is_another_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_tensors(path, "form-1", TENSORS, {})
    digests = read_facts(path, "form-1", "thing")[DIGESTS]
    with pytest.raises(UserError, match="'a' is not what was written"):
        read_tensors(path, digests | {"a": digests["b"]}, digests, "thing")
    with pytest.raises(UserError, match="is damaged"):
        read_tensors(path, digests | {"c": ""}, ["c"], "thing")


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        save_tensors(tmp_path / "file", "form-1", TENSORS, {})
