"""Whether a server of vLLM holds out with an export: many clients, some of which hang up midway.

    python benchmarks/serve_load.py EXPORT
    python benchmarks/serve_load.py EXPORT --clients 8 --minutes 15 --text wikitext2-valid.txt

Starts vLLM's server on a free port of 127.0.0.1, for which permllm-vllm has to be installed, and
asks for the greedy text of each prompt alone. Then clients ask for texts of random lengths, one
after the other, until the time is over; one in five hangs up after some tokens. Every text has to
be the beginning of that which was said alone: in float32, since in bfloat16 a batch may round a
token otherwise. Prints requests, errors, wrong texts, what the server still has in hand when all
clients are gone, and the resident memory of its processes over time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics

import attrs
import click
import httpx
import psutil

QUARTERS = 4


@contextmanager
def serving(export: str, dtype: str, length: int) -> Iterator[tuple[psutil.Process, str]]:
    """The process of a server that is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **os.environ,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", export]
    command += ["--served-model-name", "export", "--quantization", "permllm", "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(length)]
    command += ["--enforce-eager"]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            while not is_ready(address):
                if process.poll() is not None:
                    said.seek(0)
                    raise click.ClickException(f"vLLM ended:\n{said.read()[-3000:]}")
                time.sleep(1)
            yield psutil.Process(process.pid), address
        finally:
            process.terminate()
            process.wait(60)


def is_ready(address: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


def resident(process: psutil.Process) -> int:
    """Bytes of a process and of those that it started."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def in_hand(address: str) -> int:
    """Requests that the server works on or has waiting."""
    names = "vllm:num_requests_running{", "vllm:num_requests_waiting{"
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    found = [float(line.split()[-1]) for line in lines if line.startswith(names)]
    assert len(found) == len(names), "vLLM counts its requests under other names"
    return int(sum(found))


def some_prompts(text: str | None, count: int) -> list[str]:
    """Pieces of a file, or of Python's documentation."""
    whole = Path(text).read_text(encoding="utf-8") if text else "".join(topics.values())
    step = len(whole) // count
    return [
        whole[at : at + random.Random(at).randint(40, 400)] for at in range(0, step * count, step)
    ]


@attrs.define
class Load:
    """Clients of one server, and what came of their requests.

    Attributes:
        http: connections to it.
        tokens: of the longest text.
        hang_up: share of the requests that are given up midway.
        expected: the pieces of text that each prompt's answer came in, when it was asked alone.
        counts: of requests by what came of them.
        said: pieces that were received.
        errors: what went wrong, the first time that it did so.
    """

    http: httpx.AsyncClient
    tokens: int
    hang_up: float
    expected: dict[str, str] = attrs.field(factory=dict)
    counts: Counter[str] = attrs.field(factory=Counter)
    said: int = 0
    errors: Counter[str] = attrs.field(factory=Counter)

    async def answer(self, prompt: str, tokens: int, until: int) -> tuple[str, bool]:
        """What the server says, and whether it had finished; hangs up after ``until`` pieces."""
        asked = {
            "model": "export",
            "prompt": prompt,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        pieces: list[str] = []
        async with self.http.stream("POST", "/v1/completions", json=asked) as response:
            if not response.is_success:
                raise httpx.HTTPError(f"{response.status_code}: {await response.aread()!r}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "".join(pieces), True
                if line.startswith("data: "):
                    pieces.append(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
                    self.said += 1
                if len(pieces) > until:
                    return "".join(pieces), False
        raise httpx.HTTPError("the answer broke off")

    async def client(self, seed: int, ends: float) -> None:
        """Ask until the time is over."""
        chance = random.Random(seed)
        while time.monotonic() < ends:
            prompt = chance.choice(list(self.expected))
            tokens = chance.randint(1, self.tokens)
            leaves = chance.random() < self.hang_up
            until = chance.randrange(tokens) if leaves else tokens + 1
            try:
                text, whole = await self.answer(prompt, tokens, until)
            except (httpx.HTTPError, ValueError) as error:
                self.counts["errors"] += 1
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(1)
                continue
            self.counts["finished" if whole else "hung up"] += 1
            # Of bytes that are no character yet a mark may stand at the end.
            if not self.expected[prompt].startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")):
                self.counts["wrong"] += 1


async def run(
    load: Load, server: psutil.Process, prompts: list[str], clients: int, seconds: float
) -> list[int]:
    """Ask alone, then all at once; gives the resident memory at each quarter."""
    for prompt in prompts:
        load.expected[prompt], _ = await load.answer(prompt, load.tokens, load.tokens + 1)
    load.said = 0
    began = time.monotonic()
    tasks = [asyncio.create_task(load.client(seed, began + seconds)) for seed in range(clients)]
    held = [resident(server)]
    for quarter in range(1, QUARTERS + 1):
        await asyncio.sleep(began + seconds * quarter / QUARTERS - time.monotonic())
        held.append(resident(server))
    await asyncio.gather(*tasks)
    await load.http.aclose()
    return held


@click.command()
@click.argument("export", type=click.Path(exists=True, file_okay=False))
@click.option("--clients", default=32, show_default=True)
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--prompts", default=16, show_default=True, help="Different ones.")
@click.option("--tokens", default=48, show_default=True, help="Of the longest text.")
@click.option("--hang-up", default=0.2, show_default=True, help="Share of the requests.")
@click.option("--text", type=click.Path(exists=True), help="Prompts are pieces of this file.")
@click.option("--dtype", default="float32", show_default=True)
def main(
    export: str,
    clients: int,
    minutes: float,
    prompts: int,
    tokens: int,
    hang_up: float,
    text: str | None,
    dtype: str,
) -> None:
    """Ask a server for texts, and see whether it holds out."""
    with serving(export, dtype, 1024) as (server, address):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
        load = Load(
            httpx.AsyncClient(base_url=address, timeout=600, limits=limits), tokens, hang_up
        )
        held = asyncio.run(run(load, server, some_prompts(text, prompts), clients, 60 * minutes))
        time.sleep(2)
        left = in_hand(address)
        held.append(resident(server))
    counts = load.counts
    print(f"{clients} clients, {minutes:g} minutes, {dtype}, {Path(export).name}")
    print(
        f"requests: {counts['finished']} finished, {counts['hung up']} hung up, "
        f"{counts['errors']} errors; {counts['wrong']} wrong texts; {load.said} pieces of text; "
        f"{left} still in hand"
    )
    for error, count in load.errors.most_common():
        print(f"  {count} × {error}")
    print(
        "resident, MiB:", ", ".join(f"{one / 2**20:.0f}" for one in held), "(each quarter, after)"
    )
    if counts["errors"] or counts["wrong"] or left:
        sys.exit(1)


if __name__ == "__main__":
    main()
