"""The tests stand in the same tree as the package."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "permllm"

OTHERWISE = {
    "hooks.py": "two names for what tests of plugins use",
    "hookspecs.py": "declarations alone; tests of the registry and of observers call them",
    "version.py": "one number",
    "pipeline/lookup.py": "declarations alone; what reads pipelines is tested with a registry",
    "contexts/evaluation.py": "values alone; the contract of evaluators makes them",
    "evaluators/context.py": "a name of before: test_deprecation.py",
    "runner/checkpoints.py": "a name of before: test_deprecation.py",
    "runner/export.py": "a name of before: test_deprecation.py",
    "runner/plan.py": "a name of before: test_deprecation.py",
    "runner/windows.py": "a name of before: test_deprecation.py",
}
"""Modules without a test file of their name, and why."""


def test_every_module_has_its_test_file_or_a_reason() -> None:
    modules = [
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    untested = {
        module.as_posix()
        for module in modules
        if not (TESTS / module.with_name(f"test_{module.name}")).exists()
    }
    assert untested == set(OTHERWISE)
