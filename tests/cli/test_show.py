"""``permllm show``: a whole pipeline file, and where its components come from."""

from __future__ import annotations

from pathlib import Path

from permllm.pipeline.reading import read_pipeline, read_text, resolved
from permllm.registry import Registry


def test_show_is_a_pipeline_file_itself(permllm, project: Path) -> None:
    done = permllm("show", "tiny.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    registry = Registry.load()
    again = read_text(done.stdout, "tiny.yaml", project, registry)
    assert resolved(again) == resolved(read_pipeline(project / "tiny.yaml", registry))


def test_show_names_runs_and_origins(permllm, project: Path) -> None:
    said = permllm("show", "tiny.yaml", cwd=project).stdout
    assert "# runs: dense and 3 pruned\n#   none\n#   cp\n#   lcp\n" in said
    assert "#   metric wanda: from permllm 0.1.0 (permllm.metrics)\n" in said
    assert "#   permutation cp: from permllm" in said
    assert "#   dataset text: from permllm" in said
