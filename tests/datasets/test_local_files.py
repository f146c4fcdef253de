"""Files that a user named: found, or refused with the nearest; and decoded."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.datasets.jsonl import JsonLines
from permllm.datasets.text import Text
from permllm.errors import UserError


@pytest.mark.parametrize("kind", [Text, JsonLines])
def test_a_missing_file_is_refused_with_the_nearest(tmp_path: Path, kind: type, write) -> None:
    write(tmp_path / "corpus.txt", "x")
    with pytest.raises(UserError, match=r"there is no file .*corpse\.txt.*\n.*'corpus\.txt'"):
        kind(tmp_path / "corpse.txt").check()
    with pytest.raises(UserError, match="no file matches"):
        kind(tmp_path / "*.md").check()
    with pytest.raises(UserError, match="is a folder"):
        kind(tmp_path).check()
    with pytest.raises(UserError, match=r"the folder .* does not exist"):
        kind(tmp_path / "absent" / "a.txt").check()
