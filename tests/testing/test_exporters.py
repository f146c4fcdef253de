"""The contract of exporters lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs

from permllm.components import Exporter
from permllm.testing import check_exporter


@attrs.frozen(eq=False)
class AnyExporter(Exporter):
    """Exports by a function of the folder."""

    name: ClassVar[str] = "any"
    function: Any

    def export(self, context: Any, directory: Path) -> None:
        self.function(directory)


def test_bad_exporters(fails) -> None:
    check_exporter(AnyExporter(lambda folder: (folder / "a").write_text("text")))
    fails(check_exporter, AnyExporter(lambda folder: None), "wrote no file")
    fails(check_exporter, AnyExporter(lambda folder: (folder / "a").touch()), "an empty file")

    def astray(folder: Path) -> None:
        for path in (folder / "a", folder.parent / "b"):
            path.write_text("text")

    fails(check_exporter, AnyExporter(astray), "must write into the given folder only")
