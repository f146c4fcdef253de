"""What a run keeps of a window that is not finished, so that one that is killed goes on there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from permllm.errors import UserError
from permllm.files import converted, replacing
from permllm.runs.tensors import mapped_tensors, read_facts, read_tensors, save_tensors
from permllm.world import ALONE, World

FORMAT = "permllm-checkpoint-1"
"""Names the layout of a checkpoint's file in its metadata."""


@attrs.frozen(eq=False)
class Checkpoint:
    """What was kept under a name.

    Attributes:
        tensors: on the CPU, by name.
        facts: plain data.
    """

    tensors: dict[str, Tensor]
    facts: Any = None


@attrs.frozen
class _Record:
    """What a checkpoint's file says beside its tensors.

    Attributes:
        key: of what it depends on.
        facts: plain data.
        tensors: the hash of each tensor, by name.
    """

    key: str
    facts: Any
    tensors: dict[str, str]


@attrs.frozen(eq=False)
class Checkpoints:
    """Keeps tensors for somebody who works at a window, until it is finished.

    Attributes:
        folder: where; it appears with the first checkpoint. None keeps nothing.
        key: a hash of all that the tensors depend on: what was kept under another key is
            never given. None, where that cannot be told, keeps nothing.
        warn: is told what the user should know.
        world: the processes that work at the window; the first keeps, and all go on from that.
    """

    folder: Path | None = None
    key: str | None = None
    warn: Callable[[str], None] = lambda message: None
    world: World = ALONE

    @property
    def work(self) -> bool:
        """Whether anything is kept at all."""
        return self.folder is not None and self.key is not None

    def keep(self, name: str, tensors: Mapping[str, Tensor], facts: Any = None) -> bool:
        """Keep tensors under a name, in place of those that were kept under it before.

        Args:
            name: theirs.
            tensors: by name, on any device.
            facts: plain data to keep with them.

        Returns:
            whether they are kept. Where they cannot be written, the work goes on without.
        """
        if not self.work or not self.world.leads:
            return False
        apart = _apart(tensors)
        path = self._path(name)
        try:
            with replacing(path) as unfinished:
                save_tensors(unfinished, FORMAT, apart, {"key": self.key, "facts": facts})
        except OSError as error:
            self.warn(f"the checkpoint {path} cannot be kept: {error.strerror or error}")
            return False
        return True

    def kept(self, name: str) -> Checkpoint | None:
        """What was kept under a name; None where there is nothing, or nothing whole."""
        if not self.work:
            return None
        found: Checkpoint | None = None

        def look() -> bool:
            nonlocal found
            found = self._read(name)
            return found is not None

        if not self.world.agreed(look):
            return None
        found = found or self._read(name)
        if found is None:
            raise self.world.blind(self._path(name))
        return found

    def _read(self, name: str) -> Checkpoint | None:
        path = self._path(name)
        if not path.exists():
            return None
        try:
            record = converted(read_facts(path, FORMAT, "checkpoint"), _Record, str(path))
            if record.key != self.key:
                return None
            tensors = read_tensors(path, record.tensors, record.tensors, "checkpoint")
        except UserError as error:
            self.warn(f"{error.message}: what it held is made again")
            return None
        return Checkpoint(tensors, record.facts)

    def mapped(self, name: str, prefix: str) -> dict[str, Tensor]:
        """Tensors that have just been kept under a name, mapped from the file and not checked.

        Args:
            name: theirs.
            prefix: of their names within the file.

        Raises:
            UserError: the file cannot be read.
        """
        return mapped_tensors(self._path(name), prefix, "checkpoint")

    def of(self, whose: str | None) -> Checkpoints:
        """Those of one among several who work at the window, told apart by a key."""
        both = None if self.key is None or whose is None else _hash(self.key, whose)
        return attrs.evolve(self, key=both)

    def clear(self) -> None:
        """Remove all of them, with those of others who work at the window."""
        if self.folder is not None and self.world.leads:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{_hash(str(self.key), name)[:32]}.safetensors"


def checkpoints_path(directory: Path, index: int) -> Path:
    """Where the checkpoints of window ``index`` of a run are kept."""
    return directory / f"{index:03d}.unfinished"


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, copied where they share memory, which those of a file cannot."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        apart[name] = here.clone() if place in seen else here
        seen.add(place)
    return apart


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
