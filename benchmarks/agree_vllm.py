"""Whether vLLM says with packed weights what it says with the same weights dense.

    python benchmarks/agree_vllm.py DENSE EXPORT --prompts 200

DENSE is the masked export of the run of EXPORT, which has to be saved in the same type. Both are
served in float32, one after the other, and go on greedily with the same pieces of text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from typing import Any

import click

SERVER = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    folder, method, tokens, prompts = json.load(sys.stdin)
    model = LLM(
        folder, quantization=method, dtype="float32", max_model_len=1024, enforce_eager=True, seed=0
    )
    limit = SamplingParams(max_tokens=tokens, temperature=0, logprobs=0, ignore_eos=True)
    for one in model.generate(prompts, limit, use_tqdm=False):
        said = one.outputs[0]
        chances = [chance[token].logprob for token, chance in zip(said.token_ids, said.logprobs)]
        print(json.dumps([list(said.token_ids), chances]), file=out, flush=True)
"""


def answers(folder: str, method: str | None, tokens: int, prompts: list[str]) -> list[Any]:
    """Tokens and their log probabilities, for each prompt."""
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps([folder, method, tokens, prompts]),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]


@click.command()
@click.argument("dense", type=click.Path(exists=True, file_okay=False))
@click.argument("export", type=click.Path(exists=True, file_okay=False))
@click.option("--prompts", default=200, show_default=True, help="How many.")
@click.option("--tokens", default=32, show_default=True, help="That are generated for each.")
def main(dense: str, export: str, prompts: int, tokens: int) -> None:
    """Compare a dense model and an export of the same weights in vLLM."""
    from permllm.datasets.python_docs import PythonDocs

    pieces = (
        text[start : start + 200]
        for text in PythonDocs().texts("validation")
        for start in range(0, len(text) - 200, 1000)
    )
    texts = list(islice(pieces, prompts))
    before = answers(dense, None, tokens, texts)
    after = answers(export, "permllm", tokens, texts)
    same = [one[0] == other[0] for one, other in zip(before, after, strict=True)]
    apart = [
        abs(one - other)
        for (tokens_of, chances), (others, other_chances) in zip(before, after, strict=True)
        if tokens_of == others
        for one, other in zip(chances, other_chances, strict=True)
    ]
    print(f"{sum(same)} of {len(same)} texts of {tokens} tokens are the same, token for token")
    print(f"log probabilities of these differ by {max(apart):.1e} at most")


if __name__ == "__main__":
    main()
