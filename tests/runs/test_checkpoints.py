"""What is kept of unfinished work comes back as it was, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.runs import checkpoints as module
from permllm.runs.checkpoints import Checkpoints, checkpoints_path

STATE = {
    "step": torch.tensor(7),
    "mean": torch.tensor([1.5, float("nan")]),
    "order": torch.arange(3),
}


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    kept = Checkpoints(checkpoints_path(tmp_path, 3), "key")
    assert kept.kept("training") is None
    assert not list(tmp_path.iterdir())
    assert kept.keep("training", STATE, {"seconds": 1.5})
    found = Checkpoints(tmp_path / "003.unfinished", "key").kept("training")
    assert found is not None
    assert found.facts == {"seconds": 1.5}
    assert found.tensors.keys() == STATE.keys()
    for name, tensor in STATE.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    kept.keep("training", {"step": torch.tensor(8)})
    found = kept.kept("training")
    assert found is not None
    assert found.tensors == {"step": torch.tensor(8)}
    assert kept.kept("another") is None
    kept.clear()
    kept.clear()
    assert not list(tmp_path.iterdir())


def test_what_depends_on_something_else_is_never_given(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "a", "key")
    kept.keep("training", STATE)
    assert Checkpoints(tmp_path / "a", "other").kept("training") is None
    assert kept.of("pruner").kept("training") is None
    kept.of("pruner").keep("training", {"step": torch.tensor(1)})
    assert len(kept.kept("training").tensors) == 3  # type: ignore[union-attr]
    assert kept.of("learner").kept("training") is None
    assert kept.of("pruner").kept("training") is not None
    # A file under the name of another is not believed either.
    (one,) = set((tmp_path / "a").iterdir()) - {kept._path("training")}
    one.replace(kept._path("training"))
    assert kept.kept("training") is None


@pytest.mark.parametrize("nothing", [Checkpoints(), Checkpoints(None, "key")])
def test_without_a_folder_nothing_is_kept(nothing: Checkpoints) -> None:
    assert not nothing.work
    assert not nothing.keep("training", STATE)
    assert nothing.kept("training") is None
    assert not nothing.of("pruner").keep("training", STATE)
    nothing.clear()


def test_without_a_key_nothing_is_kept(tmp_path: Path) -> None:
    for unknown in (Checkpoints(tmp_path, None), Checkpoints(tmp_path, "key").of(None)):
        assert not unknown.keep("training", STATE)
        assert unknown.kept("training") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [3, 60, -3])
def test_what_is_damaged_is_said_and_not_given(tmp_path: Path, place: int) -> None:
    said: list[str] = []
    kept = Checkpoints(tmp_path, "key", said.append)
    kept.keep("training", {"mean": torch.zeros(100)})
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert kept.kept("training") is None
    (warning,) = said
    assert "made again" in warning


def test_tensors_that_share_memory_and_views_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4).requires_grad_()
    kept = Checkpoints(tmp_path, "key")
    kept.keep("views", {"whole": whole, "turned": whole.T, "again": whole})
    found = kept.kept("views")
    assert found is not None
    assert torch.equal(found.tensors["turned"], whole.T)
    assert torch.equal(found.tensors["again"], whole)


def test_a_full_disk_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    kept = Checkpoints(tmp_path, "key", said.append)
    monkeypatch.setattr(module, "save_tensors", full)
    assert not kept.keep("training", STATE)
    assert "cannot be kept: No space left on device" in said[0]
    assert not list(tmp_path.iterdir())
