"""Files that other files name: only those that belong there, and as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from permllm.errors import UserError
from permllm.models.loading import load
from permllm.models.sources import DirectorySource


@pytest.mark.parametrize("way", ["..", "absolute", "a link", "a linked folder"])
def test_an_index_leads_nowhere_else(project: Path, way: str) -> None:
    folder, outside = project / "model", project / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "sub").symlink_to(project)
    name = {
        "..": "../outside.safetensors",
        "absolute": str(outside),
        "a link": "link.safetensors",
        "a linked folder": "sub/outside.safetensors",
    }[way]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
    with pytest.raises(UserError, match="is no file of the model's folder") as caught:
        load(DirectorySource(folder))
    assert caught.value.file == str(index)


def test_a_plugin_file_that_changed_does_not_run(
    project: Path, permllm: Callable[..., Any]
) -> None:
    plugin, ran = project / "plugin.py", project / "ran"
    code = "import permllm\n\n@permllm.hookimpl\ndef permllm_metrics():\n    return []\n"
    plugin.write_text(code)
    with (project / "tiny.yaml").open("a") as file:
        file.write("plugins: [plugin.py]\n")
    words = ("run", "tiny.yaml", "--out", "out")
    assert permllm(*words).returncode == 0
    plugin.write_text(f"open({str(ran)!r}, 'w').close()\n{code}")
    export = ("export", "out/runs/none", "--format", "sparse", "--to", "sparse")
    for again in ((*words, "--resume"), export):
        done = permllm(*again)
        assert done.returncode == 2
        assert "plugin.py' changed since the run began" in done.stderr
        assert not ran.exists()
    plugin.write_text(code)
    assert permllm(*export).returncode == 0
