"""Pipeline files: refused with their place, or read; and what is shown of them says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from permllm.pipeline.reading import (
    dump_yaml,
    load_plain_yaml,
    read_study,
    resolved,
    study_of_text,
)
from permllm.redaction import redacted
from permllm.registry import Registry
from permllm.runs.plan import plan_of

PIPELINES = Path(__file__).parents[2] / "pipelines"


def samples() -> list[tuple[bytes, Any]]:
    paths = sorted(PIPELINES.rglob("*.yaml"))
    return [(path.read_bytes(), load_plain_yaml(path)) for path in paths]


def test_pipeline_files(fuzz: Any, tmp_path: Path) -> None:
    registry, known, path = Registry.load(), samples(), tmp_path / "a.yaml"

    def read(change: Any) -> None:
        raw, data = known[change.sample % len(known)]
        path.write_bytes(change.text(data) if change.structure else change.raw(raw))
        study = read_study(path, registry)
        plan_of(study, tmp_path / "out")
        plain = resolved(study.pipeline, registry)
        again = study_of_text(dump_yaml(plain), "b.yaml", tmp_path, registry)
        # But for secrets, which are left out of what is shown.
        assert redacted(resolved(again.pipeline, registry)) == redacted(plain)

    fuzz(read, 10_000, share=0.04)


def test_on_the_command_line(fuzz: Any, project: Path, say: Callable[..., str]) -> None:
    path = project / "fuzzed.yaml"
    raw, data = (project / "tiny.yaml").read_bytes(), load_plain_yaml(project / "tiny.yaml")

    def read(change: Any) -> None:
        path.write_bytes(change.text(data) if change.structure else change.raw(raw))
        say("show", path)
        say("check", path, "--out", project / "new")

    fuzz(read, 300, share=0.03)
