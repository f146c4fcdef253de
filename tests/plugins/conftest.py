"""Packages as they lie in an installed environment, without building any."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import Distribution
from pathlib import Path

import pytest

Package = Callable[..., Distribution]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Writes a package that announces a plugin to a folder for ``sys.path``."""

    def write(
        name: str,
        source: str = "",
        *,
        version: str = "1.5",
        requires: Iterable[str] = (),
        extras: Iterable[str] = (),
    ) -> Distribution:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {need}" for need in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        entry_point = f"[permllm]\n{name.removeprefix('permllm-')} = {module}\n"
        (info / "entry_points.txt").write_text(entry_point, encoding="utf-8")
        return Distribution.at(info)

    return write
