"""What vLLM gains by packed weights: CPU time and time for each token, and memory.

    python benchmarks/serve_vllm.py DENSE EXPORT
    python benchmarks/serve_vllm.py DENSE EXPORT INT8 --streams 1 --streams 8 --prompt 1024

DENSE is a folder that vLLM opens by itself, such as the masked export of the same run; the others
are sparse or permuted ones, for which permllm-vllm has to be installed. Each model is served by a
process of its own, and they take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.table import Table

SERVER = """
import json, sys, time
from vllm import LLM, SamplingParams
import psutil

if __name__ == "__main__":
    out = sys.stdout
    sys.stdout = sys.stderr
    asked = json.loads(sys.argv[1])
    began = time.perf_counter()
    model = LLM(
        asked["folder"], quantization=asked["method"], dtype=asked["dtype"], max_model_len=2048,
        enforce_eager=True, enable_prefix_caching=False, seed=0, hf_overrides=asked["overrides"],
    )
    process = psutil.Process()
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, process.memory_info().rss]), file=out, flush=True)
    for line in sys.stdin:
        streams, prompt, tokens = json.loads(line)
        prompts = [
            {"prompt_token_ids": [(7 * one + 3 * stream) % 4000 + 300 for one in range(prompt)]}
            for stream in range(streams)
        ]
        took = []
        for count in (1, tokens):
            limit = SamplingParams(max_tokens=count, min_tokens=count, temperature=0)
            began = time.perf_counter(), time.process_time()
            model.generate(prompts, limit, use_tqdm=False)
            took += [time.perf_counter() - began[0], time.process_time() - began[1]]
        print(json.dumps(took), file=out, flush=True)
"""


class Server:
    """A process in which vLLM serves a model."""

    def __init__(
        self, folder: str, method: str | None, dtype: str, threads: int, **quantization: bool
    ) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        overrides = {}
        if any(quantization.values()):
            overrides["quantization_config"] = {"quant_method": method, **quantization}
        asked = json.dumps(
            {"folder": folder, "method": method, "dtype": dtype, "overrides": overrides}
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("SHOW") else None,
            text=True,
            env=environment,
        )
        self.seconds, self.resident = self.answer()

    def answer(self) -> Any:
        """The next line that the process writes."""
        output: IO[str] | None = self.process.stdout
        assert output is not None
        for line in output:
            if line.startswith("["):
                return json.loads(line)
        raise click.ClickException("vLLM ended; SHOW=1 shows what it wrote")

    def measure(self, *work: int) -> tuple[float, float, float, float]:
        """Wall and CPU seconds of the prompt with one token, and of each further token."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        first, first_cpu, all_of_it, all_cpu = self.answer()
        count = work[0] * (work[2] - 1)
        return first, first_cpu, (all_of_it - first) / count, (all_cpu - first_cpu) / count


@click.command()
@click.argument("dense", type=click.Path(exists=True, file_okay=False))
@click.argument("exports", type=click.Path(exists=True, file_okay=False), nargs=-1, required=True)
@click.option("--streams", multiple=True, default=(1, 8), show_default=True)
@click.option("--prompt", multiple=True, default=(32,), show_default=True, help="Tokens of it.")
@click.option("--tokens", default=33, show_default=True, help="That are generated.")
@click.option("--rounds", default=5, show_default=True, help="Of which medians are shown.")
@click.option("--threads", default=1, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--keep-dense", is_flag=True, help="Hold pruned weights dense, too.")
def main(
    dense: str,
    exports: tuple[str, ...],
    streams: tuple[int, ...],
    prompt: tuple[int, ...],
    tokens: int,
    rounds: int,
    threads: int,
    dtype: str,
    keep_dense: bool,
) -> None:
    """Serve a dense model and exports side by side."""
    servers = {"dense": Server(dense, None, dtype, threads)} | {
        Path(export).name: Server(export, "permllm", dtype, threads, keep_dense=keep_dense)
        for export in exports
    }
    work = [(count, length, tokens) for count in streams for length in prompt]
    took: dict[tuple[Any, ...], list[Any]] = {}
    for number in range(rounds + 1):
        for one in work:
            for name, server in servers.items():
                measured = server.measure(*one)
                if number:  # the first time is to warm up
                    took.setdefault((one, name), []).append(measured)
    table = Table("streams", "prompt", "export", "", "dense ms", "packed ms", "time", "CPU")
    for one in work:
        medians = {
            name: [statistics.median(column) for column in zip(*took[one, name], strict=True)]
            for name in servers
        }
        before = medians.pop("dense")
        for name, after in medians.items():
            for what, column in (("first token", 0), ("each further", 2)):
                table.add_row(
                    str(one[0]),
                    str(one[1]),
                    name,
                    what,
                    f"{1000 * before[column]:.1f}",
                    f"{1000 * after[column]:.1f}",
                    f"{before[column] / after[column]:.2f} ×",
                    f"{before[column + 1] / after[column + 1]:.2f} ×",
                )
    Console().print(table)
    for name, server in servers.items():
        print(f"{name}: {server.resident / 2**20:.0f} MiB resident, open in {server.seconds:.1f} s")
    kept = ", dense weights kept" if keep_dense else ""
    print(f"{dtype}, {threads} thread{'s' * (threads > 1)}{kept}")


if __name__ == "__main__":
    main()
