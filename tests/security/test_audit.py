"""What `tox run -e audit` makes of pip-audit's report."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "audit.py"))


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    own = {"name": "permllm", "skip_reason": "distribution marked as editable"}
    return {"dependencies": [own, *packages], "fixes": []}


SOUND = {"name": "attrs", "version": "25.1", "vulns": []}
HOLE = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
WEAK = {"name": "weak", "version": "1.0", "vulns": [HOLE, HOLE | {"fix_versions": []}]}
UNKNOWN = {"name": "local", "skip_reason": "not found on PyPI"}


def test_a_weakness_fails() -> None:
    code, lines = AUDIT["verdict"](report(SOUND, WEAK))
    assert code == 1
    assert lines == [
        "weak 1.0: PYSEC-1, mended in 2.0",
        "weak 1.0: PYSEC-1, mended in no version yet",
        "2 packages audited, 2 known weaknesses",
    ]


def test_what_could_not_be_audited_is_said() -> None:
    code, lines = AUDIT["verdict"](report(SOUND, UNKNOWN))
    assert (code, lines[-1]) == (0, "not audited, since nothing is known of them: local")
    code, lines = AUDIT["verdict"](report(UNKNOWN))
    assert code == 0
    assert lines[0].startswith("NOT AUDITED: no vulnerability data could be reached for any of 1")
