"""Pictures as files, which are drawn anew only where something changed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from permllm.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@attrs.frozen
class Picture:
    """A picture that may not have to be drawn.

    Attributes:
        draw: draws it; None where there is nothing to see.
        of: what it gets, of which every digit may count.
    """

    draw: Callable[..., Figure | None]
    of: tuple[Any, ...]

    @property
    def identifier(self) -> str:
        """What a file of this picture has in it, drawn by this code of the same."""
        import matplotlib as mpl

        code = Path(inspect.getfile(self.draw)).read_bytes()
        parts = (mpl.__version__, self.draw.__name__, self.of)
        return f"permllm:{hashlib.sha256(code + repr(parts).encode()).hexdigest()}"


def write_pictures(folder: Path, pictures: Mapping[str, Picture]) -> list[Path]:
    """Have pictures in a folder, as PNG and SVG; what was drawn of the same before stays.

    Returns:
        the PNG files.
    """
    return [
        path
        for name, picture in pictures.items()
        if _write(path := folder / f"{name}.png", picture)
    ]


def _write(path: Path, picture: Picture) -> bool:
    """Have the files of a picture there; False where there is nothing to see."""
    svg, identifier = path.with_suffix(".svg"), picture.identifier
    if path.exists() and svg.exists() and identifier in svg.read_text(encoding="utf-8"):
        return True
    figure = picture.draw(*picture.of)
    if figure is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
    # The last, since it says of both what they are drawn of.
    with replacing(svg) as unfinished:
        figure.savefig(unfinished, format="svg", metadata={"Date": None, "Identifier": identifier})
    return True
