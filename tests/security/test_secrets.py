"""Passwords and tokens of a tracking store are in no file and on no terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SECRETS = ("hush-password", "hush-token")


def holding(folder: Path, *apart: str) -> list[str]:
    """The files below a folder that hold a secret, but for those of some names."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in apart
        and any(secret.encode() in path.read_bytes() for secret in SECRETS)
    ]


@pytest.mark.parametrize(
    ("store", "given"), [("that works", "by --set"), ("that is away", "in the file")]
)
def test_secrets_of_a_tracking_uri_are_nowhere(
    project: Path, permllm: Callable[..., object], store: str, given: str
) -> None:
    uri = {
        "that works": f"sqlite:///file:{project}/store.db?mode=rwc&uri=true&token=hush-token",
        "that is away": "http://me:hush-password@127.0.0.1:9/x?token=hush-token",
    }[store]
    words = ["run", "tiny.yaml", "--out", "out"]
    if given == "in the file":
        pipeline = project / "tiny.yaml"
        text = pipeline.read_text().replace("track: {}", f"track: {{mlflow: {{uri: '{uri}'}}}}")
        pipeline.write_text(text)
    else:
        words += ["--set", f"track.mlflow.uri={uri}"]
    done = permllm(*words)
    assert done.returncode == 0, done.stderr
    assert ("MLflow at" in done.stderr) == (store == "that is away")
    assert (project / "store.db").exists() == (store == "that works")
    again = permllm(*words, "--resume")
    assert again.returncode == 0, again.stderr
    run = project / "out" / "runs" / "none"
    exported = permllm("export", run, "--format", "sparse", "--to", "sparse")
    assert exported.returncode == 0, exported.stderr
    shown = permllm("show", "tiny.yaml", *words[4:])
    assert shown.returncode == 0
    wrong = permllm(*words, "--set", f"track.mlflow.run_nam={uri}", "--debug")
    assert wrong.returncode == 2
    for call in (done, again, exported, shown, wrong):
        for secret in SECRETS:
            assert secret not in call.stdout + call.stderr
    assert holding(project, "tiny.yaml") == []
    # What is looked for would be found: the files are those that name the store.
    shown_uri = "***@127.0.0.1:9" if store == "that is away" else "store.db?mode=***"
    for name in ("pipeline.yaml", "report.md"):
        assert shown_uri in (project / "out" / name).read_text(), name
    # Others read exports, and where this machine tracks its runs is not their business.
    for export in (run / "exports/masked", project / "sparse"):
        for name in ("pipeline.yaml", "README.md"):
            text = (export / name).read_text()
            assert "127.0.0.1:9" not in text, name
            assert "store.db" not in text, name
