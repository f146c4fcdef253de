"""What is no finished run, or would overwrite something, is not exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from permllm.api import run_plan
from permllm.components import Exporter
from permllm.contexts.export import ExportContext
from permllm.errors import RunFailed, UserError
from permllm.exporters.masked import Masked
from permllm.exporters.sparse import Sparse
from permllm.files import workplace
from permllm.formats.manifest import read_manifest
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.runner.exporting import export_run
from permllm.runs.plan import make_plan


def test_what_a_killed_export_left_beside_its_whole_folder_goes(
    registry: Registry, tmp_path: Path
) -> None:
    with workplace(tmp_path) as work:
        left = work
    left.mkdir()
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export_run(tmp_path, Masked(), registry, tmp_path / "to")
    assert not left.exists()
    assert (tmp_path / "to").exists()


def test_a_folder_that_is_there_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(UserError, match="is there already"):
        export_run(tmp_path / "run", Masked(), registry, tmp_path / "to")


def test_only_what_is_still_whole_is_exported(
    registry: Registry, tmp_path: Path, write_pipeline: Callable[..., Path]
) -> None:
    path = write_pipeline(layers={"permutation": "none"}, evaluate=[], export=[])
    out, to = tmp_path / "out", tmp_path / "to" / "masked"
    run_plan(make_plan(path, registry, out=out), registry)
    with pytest.raises(UserError, match="no folder of a finished run") as caught:
        export_run(out, Masked(), registry, to)
    assert str(caught.value.hint) == f"name one of its runs: {out / 'runs/none'}"
    export_run(out / "runs/none", Masked(), registry, to)
    assert [path.name for path in to.parent.iterdir()] == ["masked"]
    assert (to / "model.safetensors").exists()

    config = tmp_path / "llama/config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    with pytest.raises(UserError, match="has changed since"):
        export_run(out / "runs/none", Masked(), registry, tmp_path / "other")
    config.write_text(text)
    (out / "runs/none/windows/000.safetensors").unlink()
    with pytest.raises(UserError, match=r"000\.safetensors' is gone"):
        export_run(out / "runs/none", Masked(), registry, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_values_are_rounded_by_the_text_of_the_run(
    registry: Registry, tmp_path: Path, write_pipeline: Callable[..., Path]
) -> None:
    """Within the run and after it alike, since the text is read again."""
    rounding = {"name": "sparse", "values": "int4", "group_size": 8}
    path = write_pipeline(layers={"permutation": "cp"}, evaluate=[], export=[rounding])
    out = tmp_path / "out"
    run_plan(make_plan(path, registry, out=out), registry)
    run = out / "runs/cp"
    export_run(run, Sparse(values="int4", group_size=8), registry, tmp_path / "again")
    export_run(
        run, Sparse(values="int4", group_size=8, rounding="nearest"), registry, tmp_path / "other"
    )
    first, again, other = (
        {name: entry.sha256 for name, entry in read_manifest(folder).tensors.items()}
        for folder in (run / "exports/sparse", tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    assert changed
    assert all(name.endswith((".values", ".scales", ".indices")) for name in changed)


@attrs.frozen
class Writes(Exporter):
    """Writes nothing, or writes after it changed the model."""

    name = "writes"
    changes: bool = False

    def export(self, context: ExportContext, directory: Path) -> None:
        (directory / "empty").mkdir()
        if self.changes:
            (directory / "model").write_text("all of it")
            next(context.model.parameters()).detach().zero_()


class WritesPlugin:
    @hookimpl
    def permllm_exporters(self) -> list[type[Exporter]]:
        return [Writes]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (False, "wrote no file into the folder that it was given"),
        (True, r"changed the model's model\.embed_tokens\.weight"),
    ],
)
def test_an_exporter_that_writes_nothing_or_changes_the_model_is_named(
    registry: Registry,
    tmp_path: Path,
    write_pipeline: Callable[..., Path],
    changes: bool,
    fault: str,
) -> None:
    registry.add(WritesPlugin(), "writes")
    path = write_pipeline(layers={"permutation": "none"}, evaluate=[], export=[])
    out, to = tmp_path / "out", tmp_path / "to"
    run_plan(make_plan(path, registry, out=out), registry)
    with pytest.raises(RunFailed, match=f"^exporter 'writes' {fault}"):
        export_run(out / "runs/none", Writes(changes), registry, to)
    assert not to.exists()

    settings = [f"export=[{{name: writes, changes: {str(changes).lower()}}}]"]
    with pytest.raises(RunFailed, match=f"^exporter 'writes' {fault}"):
        run_plan(make_plan(path, registry, settings, tmp_path / "run"), registry)
    assert not (tmp_path / "run/runs/none/exports/writes").exists()
