"""``report.md``: what a pipeline's runs found, for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permllm.comparing.repeats import repeated
from permllm.comparing.sentence import sentence
from permllm.comparing.table import markdown
from permllm.files import read_sealed, write_text
from permllm.redaction import redacted
from permllm.results import Results

if TYPE_CHECKING:
    from permllm.runs.plan import Plan

REPORT = "report.md"
"""The report's name in the folder of the run."""

CAPTIONS = {
    "perplexity": "Perplexity of every run.",
    "retained": "Share of the importance scores that the pattern keeps, by decoder layer.",
    "training": "Loss and temperature while the order was learned.",
}
"""What the plots of the whole pipeline show, by the names of their files."""

HOW_TO_READ = """\
*gap closed*: how much of the perplexity that pruning in the original channel order adds to the
dense model's is taken back. *retained score*: the share of the summed importance scores that the
pattern keeps. *time*: of pruning, without evaluation and export."""

HOW_TO_READ_REPEATS = """\
Figures are means ± standard deviations (n − 1) of n repeats, which differ in their seeds. *gap
closed* is the mean of the repeats' gaps, each against the same repeat without a permutation.
*against*: the mean ± standard error of the differences from another setting, repeat by repeat, and
in how many pairs of repeats the setting is better; that is the one without a permutation that is
otherwise alike or, where there is none, the first."""

LOADING = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})"""


def write_report(results: Results, plan: Plan) -> Path:
    """Write ``report.md``; plots that lie in ``plots/`` are shown in it."""
    from permllm.pipeline.reading import dump_yaml, resolved
    from permllm.runs.folder import ENVIRONMENT

    path = plan.out / ENVIRONMENT
    environment = read_sealed(path, older=True) if path.exists() else {}
    pipeline = dump_yaml(resolved(plan.pipeline)).strip()
    parts = [
        f"# {results.pipeline}",
        sentence(results),
        markdown(results),
        HOW_TO_READ,
        *([HOW_TO_READ_REPEATS] if repeated(results) else []),
        *_failures(results),
        *_pictures(plan.out),
        *_exports(results),
        "## Pipeline",
        f"```yaml\n{pipeline}\n```",
        *_environment(environment),
    ]
    path = plan.out / REPORT
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _pictures(out: Path) -> list[str]:
    return [
        f"![{caption}](plots/{name}.png)"
        for name, caption in CAPTIONS.items()
        if (out / "plots" / f"{name}.png").exists()
    ]


def _failures(results: Results) -> list[str]:
    """What broke which run, in full."""
    rows = [
        f"- {run.label}: {redacted(' '.join(run.error.split()))}"
        for run in results.runs
        if run.error is not None
    ]
    return ["## Failed runs", "\n".join(rows)] if rows else []


def _exports(results: Results) -> list[str]:
    """Where the exported models are, and how the last of them is loaded."""
    rows = [
        f"- {run.label}, {exporter}: `{folder}`"
        for run in results.runs
        for exporter, folder in run.exports.items()
    ]
    if not rows:
        return []
    parts = ["## Exported models", "\n".join(rows)]
    last = [run.exports["masked"] for run in results.runs if "masked" in run.exports]
    if last:
        folder = json.dumps(str(Path(results.out) / last[-1]), ensure_ascii=False)
        parts.append(f"```python\n{LOADING.format(folder=folder)}\n```")
    return parts


def _environment(environment: dict[str, Any]) -> list[str]:
    if not environment:
        return []
    rows = [
        f"- {name} {version}"
        for name, version in {
            "python": environment.get("python"),
            **environment["versions"],
        }.items()
    ]
    for key in ("platform", "cuda_device", "git_commit", "model", "model_fingerprint"):
        if environment.get(key):
            rows.append(f"- {key.replace('_', ' ')}: {environment[key]}")
    return ["## Versions", "\n".join(rows)]
