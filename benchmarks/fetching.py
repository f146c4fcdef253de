"""Whether layers are better fetched ahead by a thread, or copied when they run.

    OMP_NUM_THREADS=1 python benchmarks/fetching.py
    python benchmarks/fetching.py --device cuda --hidden 4096 --layers 8

A model with random weights in bfloat16 is mapped from its file and streamed through forward
passes in both ways, in turn, with the file in the operating system's cache (warm) and not (cold).
The CPU computes in float32. There permllm copies layers when they run; the thread that is measured
here widens the next one meanwhile.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import patch

import click
import torch
from resident import VOCABULARY, save_model
from rich.console import Console
from rich.table import Table

from permllm.models.decoder import Decoder
from permllm.models.devices import pick_dtype
from permllm.models.fetching import Fetch
from permllm.models.loading import load
from permllm.models.residency import Residency
from permllm.models.sources import DirectorySource

DONT_NEED = 4
"""``MADV_DONTNEED`` of Linux."""

Begin = Callable[[Residency, torch.nn.Module], None]
"""As ``Residency._fetch``."""


def nothing(residency: Residency, layer: torch.nn.Module) -> None:
    """Fetch nothing ahead."""


def on_the_host(residency: Residency, layer: torch.nn.Module) -> None:
    """Have a thread widen a layer for the CPU."""
    residency.drop_ahead()
    homes = {one: one.data for one in layer.parameters()}
    worker = ThreadPoolExecutor(1)
    made = worker.submit(lambda: {one: residency.visit(home) for one, home in homes.items()})
    worker.shutdown(wait=False)
    residency._ahead = layer, Fetch(made, Event())


def forget(model: Any, folder: Path) -> None:
    """Have nobody hold what is mapped of a model's layers: neither the process nor the system."""
    advise = ctypes.CDLL(None).madvise
    for parameter in model.model.layers.parameters():
        # The pages that are the tensor's alone; those at its ends hold something of others.
        first = -(-parameter.data.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (parameter.data.data_ptr() + parameter.data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONT_NEED)
    for path in folder.glob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


@torch.no_grad()
def seconds(decoder: Decoder, tokens: torch.Tensor, begin: Begin) -> float:
    """What a streamed forward pass takes."""
    with patch.object(Residency, "_fetch", begin), decoder.streamed():
        began = time.monotonic()
        decoder.model(tokens, use_cache=False, logits_to_keep=1).logits.sum().item()
        return time.monotonic() - began


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--hidden", default=1024, show_default=True, help="Width of the model.")
@click.option("--tokens", multiple=True, type=int, default=(64, 512), show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(device: str, layers: int, hidden: int, tokens: tuple[int, ...], rounds: int) -> None:
    """Time forward passes with and without fetching ahead."""
    ahead = on_the_host if device == "cpu" else Residency._fetch
    table = Table("tokens", "file", "when they run", "ahead", "ratio", "least", "most")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, layers, hidden)
        dtype = pick_dtype("auto", torch.device(device))
        model = load(DirectorySource(path=folder), dtype, as_saved=True).model
        decoder = Decoder.trace(model, None, dtype)
        decoder.place(device, ())
        for count in tokens:
            batch = torch.randint(VOCABULARY, (4, count // 4), device=device)
            seconds(decoder, batch, nothing)
            for cold in (False, True):
                times: list[tuple[float, float]] = []
                for _ in range(rounds):
                    both = []
                    for begin in (nothing, ahead):
                        if cold:
                            forget(model, folder)
                        both.append(seconds(decoder, batch, begin))
                    times.append((both[0], both[1]))
                ratios = sorted(later / now for now, later in times)
                middle = [1000 * statistics.median(each) for each in zip(*times, strict=True)]
                table.add_row(
                    str(count), "cold" if cold else "warm",
                    *(f"{one:,.0f} ms" for one in middle),
                    *(f"{one:.2f}" for one in (statistics.median(ratios), ratios[0], ratios[-1])),
                )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
