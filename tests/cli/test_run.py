"""``permllm run`` from the file to the folder, in processes of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from permllm.files import read_sealed


@pytest.fixture(scope="module")
def finished(permllm, project: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run with ``--json``, done once for all tests that only look at it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = permllm("run", "tiny.yaml", "--json", "--out", out, cwd=project, draw=True)
    assert done.returncode == 0, done.stderr
    return done, out


def test_json_is_one_object_and_nothing_else(finished) -> None:
    done, out = finished
    said = json.loads(done.stdout)
    assert said["pipeline"] == "tiny"
    assert said["out"] == str(out)
    assert [run["label"] for run in said["runs"]] == ["dense", "none", "cp", "lcp"]
    for run in said["runs"]:
        assert run["figures"]["perplexity/text"] > 1
        assert run["seconds"] >= 0
        assert run["peak_memory_bytes"] > 1e7
        assert "layers" not in run


def test_results_hold_the_layers_too(finished) -> None:
    done, out = finished
    results = read_sealed(out / "results.json")
    assert results["runs"][1]["layers"][0]["pattern"] == "2:4"
    for run in results["runs"]:
        del run["layers"]
    assert results == json.loads(done.stdout)


def test_folder_holds_what_the_docs_say(finished) -> None:
    _, out = finished
    for name in ("pipeline.yaml", "environment.json", "events.jsonl", "report.md"):
        assert (out / name).stat().st_size > 0, name
    assert list((out / "plots").glob("*.svg"))
    assert list((out / "plots").glob("*.png"))
    assert list(out.glob("runs/lcp/windows/*.safetensors"))


def test_export_opens_unchanged(finished) -> None:
    from transformers import AutoModelForCausalLM

    done, out = finished
    run = json.loads(done.stdout)["runs"][3]
    model = AutoModelForCausalLM.from_pretrained(out / run["exports"]["masked"])
    window = load_file(out / "runs/lcp/windows/000.safetensors")
    name = next(key for key in window if key.startswith("weight/") and "q_proj" in key)
    parameter = dict(model.named_parameters())[f"{name.removeprefix('weight/')}.weight"]
    assert (parameter == window[name]).all()


def test_table_and_places(permllm, project: Path, tmp_path: Path) -> None:
    done = permllm("run", "tiny.yaml", "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "none", "cp", "lcp", "perplexity", str(tmp_path / "run" / "report.md")):
        assert word in done.stdout


def test_dry_run_writes_nothing(permllm, project: Path, tmp_path: Path) -> None:
    done = permllm("run", "tiny.yaml", "--dry-run", "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "estimate" in done.stdout
    assert all(f"  {label}\n" in done.stdout for label in ("dense", "none", "cp", "lcp"))
    assert not (tmp_path / "run").exists()


def test_set_changes_the_pipeline(permllm, project: Path, tmp_path: Path) -> None:
    words = ["--set", "pattern=1:4", "--set", "matrix={layers.permutation: [none]}"]
    done = permllm("run", "tiny.yaml", "--json", *words, "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][1]["figures"]["sparsity"] == pytest.approx(0.75)


def test_finished_folder_is_not_overwritten(
    permllm, pasted, project: Path, finished, tmp_path: Path
) -> None:
    _, out = finished
    before = (out / "results.json").read_bytes()
    again = permllm("run", "tiny.yaml", "--out", out, cwd=project)
    assert again.returncode == 2
    command = again.stderr.partition("go on with it: ")[2]
    gone_on = pasted(command, cwd=tmp_path)
    assert gone_on.returncode == 0, gone_on.stderr
    other = permllm("run", "tiny.yaml", "--set", "seed=7", "--out", out, "--resume", cwd=project)
    assert other.returncode == 2
    assert "seed" in other.stderr
    assert (out / "results.json").read_bytes() == before


def test_interrupted_run_resumes_to_the_same_bits(
    permllm, start, project: Path, finished, tmp_path: Path
) -> None:
    _, whole = finished
    out = tmp_path / "run"
    process = start("run", "tiny.yaml", "--out", out, cwd=project)
    first = out / "runs/cp/windows/000.safetensors"
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    resume = said.partition("state kept; go on with: ")[2].partition("\n")[0]
    assert resume.endswith(f"python -m permllm run tiny.yaml --out {out} --resume")
    done = subprocess.run(resume, shell=True, cwd=project, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in sorted(whole.glob("runs/*/windows/*.safetensors")):
        here, there = load_file(path), load_file(out / path.relative_to(whole))
        assert here.keys() == there.keys()
        assert all((here[name] == there[name]).all() for name in here), path


def test_component_that_breaks_exits_with_1(
    permllm, project: Path, plugins: str, tmp_path: Path
) -> None:
    words = ["--set", "layers.metric=breaks", "--set", "matrix=null", "--out", tmp_path / "run"]
    done = permllm("run", "tiny.yaml", *words, cwd=project, PYTHONPATH=plugins)
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr
    assert "not today" in done.stderr
    assert f"--out {tmp_path / 'run'} --resume" in done.stderr
    assert "Traceback" not in done.stderr
    debugged = permllm(
        "run", "tiny.yaml", *words, "--resume", "--debug", cwd=project, PYTHONPATH=plugins
    )
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("patern=2:4", "pattern"),
        ("layers.metric=wnada", "wanda"),
        ("calibration.length=-1", "between 2 and"),
        ("calibration.sequences=many", "whole number"),
        ("pattern=4:4", "pattern"),
        ("pattern=2:5", "does not divide"),
        ("model.path=nowhere", "nowhere"),
        ("calibration.sequences=100000", "tokens"),
    ],
)
def test_wrong_input_exits_with_2(
    permllm, project: Path, tmp_path: Path, setting: str, message: str
) -> None:
    done = permllm("run", "tiny.yaml", "--set", setting, "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_file(permllm, tmp_path: Path) -> None:
    done = permllm("run", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr


def test_output_folder_below_a_file(permllm, project: Path) -> None:
    done = permllm("run", "tiny.yaml", "--out", "text.txt/run", cwd=project)
    assert done.returncode == 2
    assert "text.txt" in done.stderr


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("masked", "no linear has more weights left than 2:4 keeps"),
        ("permuted", "is a permuted export of permllm"),
        ("sparse", "is a sparse export of permllm"),
    ],
)
def test_what_is_pruned_already_is_not_pruned_again(
    permllm,
    exports: Path,
    cp_only: list[str],
    project: Path,
    tmp_path: Path,
    kind: str,
    said: str,
) -> None:
    model = f"model={{source: directory, path: '{exports / kind}'}}"
    out = tmp_path / "again"
    done = permllm("run", "tiny.yaml", *cp_only, "--set", model, "--out", out, cwd=project)
    assert done.returncode == 2
    assert "pruned already" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


FAILING = """\
import attrs
import permllm
from permllm.components import Metric


@attrs.frozen
class Own(Metric):
    '''Breaks until it is mended.'''

    name = "own"

    def scores(self, weight, statistics):
        raise ArithmeticError("not today")


@permllm.hookimpl
def permllm_metrics():
    return [Own]
"""


BREAKS = 'raise ArithmeticError("not today")'
GIVES_A_WRONG_VALUE = "return -weight.abs().float()"


@pytest.mark.parametrize("fault", [BREAKS, GIVES_A_WRONG_VALUE])
def test_a_plugin_file_that_has_to_be_mended_is_not_to_be_resumed(
    permllm, pasted, project: Path, cp_only: list[str], tmp_path: Path, fault: str
) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(FAILING.replace(BREAKS, fault))
    words = [*cp_only, "--set", f"plugins=[{plugin}]", "--set", "layers.metric=own"]
    done = permllm("run", "tiny.yaml", *words, "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 1
    assert f"it comes from the plugin {plugin}" in done.stderr
    assert "--resume" not in done.stderr
    way = "with a changed plugin file, start anew with what is kept: "
    command = done.stderr.partition(way)[2].partition("\n")[0]
    assert command.endswith(f"--cache {tmp_path / 'run' / 'cache'}")
    mended = "return weight.abs().float()"
    plugin.write_text(FAILING.replace(BREAKS, mended))
    again = pasted(command, "--out", tmp_path / "again", cwd=project)
    assert again.returncode == 0, again.stderr


def test_some_runs_that_fail_by_a_plugin_file_are_not_to_be_resumed(
    permllm, project: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(FAILING.replace(BREAKS, GIVES_A_WRONG_VALUE))
    words = ["--set", f"plugins=[{plugin}]", "--set", "matrix={layers.metric: [wanda, own]}"]
    words += ["--set", "evaluate=[]", "--set", "export=[]", "--out", tmp_path / "run"]
    done = permllm("run", "tiny.yaml", *words, cwd=project)
    assert done.returncode == 1
    assert "1 of 2 runs failed" in done.stderr
    assert "--resume" not in done.stderr
    assert "with a changed plugin file, start anew with what is kept: " in done.stderr


def test_runs_are_done_here_or_on_ray(permllm, project: Path, tmp_path: Path) -> None:
    done = permllm("run", "tiny.yaml", "--on", "slurm", "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 2
    assert "error: --on says where runs are done: ray or ray:ADDRESS, not slurm" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_computed_is_kept_in_a_store(permllm, project: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    first = permllm("run", "tiny.yaml", "--cache", url, "--out", tmp_path / "one", cwd=project)
    assert first.returncode == 0, first.stderr
    # As on a machine that shares nothing with the first but the store.
    second = permllm("run", "tiny.yaml", "--cache", url, "--out", tmp_path / "two", cwd=project)
    assert second.returncode == 0, second.stderr
    found = _names(tmp_path / "two" / "cache")
    assert found
    assert found <= _names(tmp_path / "one" / "cache")
    assert not list((tmp_path / "store" / "leases").iterdir())


def _names(cache: Path) -> set[str]:
    """Of all entries; one that is computed again has another, for its cost differs."""
    return {path.name for path in cache.glob("*/*.*.*")}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://me:secret@bucket/x", "--cache s3://***@bucket/x: a URL with a user"),
        ("smb://host/x", "--cache smb://host/x needs smb"),
        ("nobody://host/x", "--cache nobody://host/x: this is no URL of a store"),
        ("file:///proc/x", "--cache file:///proc/x: writing leases/probe-"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_before_anything_begins(
    permllm, project: Path, tmp_path: Path, url: str, said: str
) -> None:
    done = permllm("run", "tiny.yaml", "--cache", url, "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 2
    assert f"error: {said}" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
