"""What the folder of an export says of each linear that vLLM builds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from permllm.core.codes import Grid
from permllm.core.packing import index_bits
from permllm.core.patterns import Pattern
from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.formats.gathers import BUFFER
from permllm.formats.manifest import MANIFEST, TensorEntry, read_manifest
from permllm.formats.packed_entry import PackedEntry


@attrs.frozen(eq=False)
class Layout:
    """How the weight of a linear, or of several that vLLM makes one, is stored and read.

    Attributes:
        pattern: N:M of all of its rows; None where it is dense.
        packed: whether the files hold values and indices in place of the weight.
        grid: what these values are rounded to, of which there are codes and scales; or None.
        permutation: ``LongTensor[C_in]``, in which it reads its input; None for the stored order.
    """

    pattern: Pattern | None = None
    packed: bool = False
    grid: Grid | None = None
    permutation: Tensor | None = None

    def check_cut(self, channels: int, part: int) -> None:
        """Refuse a cut of the input channels between tensor-parallel ranks that breaks it.

        Args:
            channels: C_in.
            part: of each rank.

        Raises:
            ValueError: with the reason.
        """
        if part == channels:
            return
        if self.permutation is not None:
            raise ValueError(
                "its input is put in order at run time, which needs all of it: "
                "tensor-parallel ranks cannot share it"
            )
        if self.pattern is None:
            return
        if part % self.pattern.m:
            raise ValueError(
                f"{part} of {channels} channels for each tensor-parallel rank cut a group of "
                f"{self.pattern.m} ({self.pattern}): take fewer ranks"
            )
        kept = part // self.pattern.m * self.pattern.n
        bits = (index_bits(self.pattern), 8 if self.grid is None else self.grid.bits)
        if self.packed and any(kept * each % 8 for each in bits):
            raise ValueError(
                f"what is stored of {part} of {channels} channels for each tensor-parallel rank "
                "ends within a byte: take fewer ranks, or the permuted export"
            )
        if self.grid is not None and (self.grid.span is None or part % self.grid.span):
            raise ValueError(
                f"{part} of {channels} channels for each tensor-parallel rank cut the "
                f"{self.grid.channels(channels)} that share a scale: take fewer ranks, or export "
                "with a `group_size` that divides them"
            )


@attrs.frozen(eq=False)
class Export:
    """The linears of an exported folder, by the names that the model has in transformers.

    Attributes:
        folder: where it is, or its name on the hub.
        layouts: of each linear that is pruned, packed or reads its input in another order.
    """

    folder: str
    layouts: dict[str, Layout]

    @classmethod
    def read(cls, folder: str, revision: str | None = None) -> Export:
        """Read the manifest and the permutations.

        Raises:
            UserError: it is no finished export, of a newer version, damaged, or of a kind that
                is not served.
        """
        place = Path(_file(folder, MANIFEST, revision)).parent
        manifest = read_manifest(place)
        if manifest.format == "masked":
            raise UserError(
                f"'{folder}' is a masked export, which is not N:M as it is stored",
                hint="`permllm export RUN --format permuted` writes one that is; or leave out "
                "`--quantization permllm` to serve it as a dense model",
            )
        if experts := [name for name, one in manifest.packed.items() if len(one.shape) != 2]:
            raise UserError(
                f"'{folder}' holds experts packed ('{experts[0]}'), which vLLM has no product for",
                hint="`permllm export RUN --format permuted` writes them as vLLM reads them",
            )
        # Of the tensors, since some linears of a group that has a pattern may stay dense.
        stored: dict[str, TensorEntry | PackedEntry] = {**manifest.tensors, **manifest.packed}
        patterns = {
            name.removesuffix(".weight"): Pattern.parse(entry.pattern)
            for name, entry in stored.items()
            if entry.pattern
        }
        grids = {name.removesuffix(".weight"): one.grid for name, one in manifest.packed.items()}
        permutations: dict[str, Tensor] = {}
        for group in manifest.gathers:
            name = f"{group.at[0]}.{BUFFER}"
            if any("[" in linear for linear in group.linears):
                raise UserError(
                    f"'{folder}' puts the input of experts in order at run time ('{name}'), "
                    "which vLLM cannot",
                    hint="prune with `layers.foldable: true`, so that every order is folded",
                )
            file = _file(folder, manifest.tensors[name].file, revision)
            with safe_open(file, "pt") as tensors:
                permutation = tensors.get_tensor(name)
            if not is_permutation(permutation):
                raise UserError(f"'{name}' is no permutation: '{folder}' is damaged")
            permutations |= dict.fromkeys(group.linears, permutation)
        return cls(
            folder,
            {
                linear: Layout(
                    patterns.get(linear),
                    linear in grids,
                    grids.get(linear),
                    permutations.get(linear),
                )
                for linear in {**patterns, **permutations}
            },
        )

    def of(self, linears: Sequence[str]) -> Layout:
        """How several linears are stored that are made one.

        Raises:
            ValueError: they are stored in ways that one weight cannot have.
        """
        layouts = [self.layouts.get(linear, Layout()) for linear in linears]
        first = layouts[0]
        if not all(_same(first.permutation, other.permutation) for other in layouts):
            raise ValueError(f"{_and(linears)} read their input in different orders")
        if len({(other.pattern, other.packed, other.grid) for other in layouts}) == 1:
            return first
        if any(other.packed for other in layouts):
            raise ValueError(
                f"{_and(linears)} are stored in different ways ({_and(map(_kind, layouts))}), and "
                "vLLM makes them one: serve the permuted export, in which they are one dense weight"
            )
        return Layout(permutation=first.permutation)


def _file(folder: str, name: str, revision: str | None) -> str:
    try:
        return str(cached_file(folder, name, revision=revision))
    except OSError as error:
        raise UserError(
            f"'{folder}' is no finished export of permllm: it has no {name}",
            hint="name the folder of a permuted or sparse export",
        ) from error


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _kind(layout: Layout) -> str:
    if layout.pattern is None:
        return "dense"
    return f"{layout.pattern}{'' if layout.grid is None else ' ' + layout.grid.kind}"


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
