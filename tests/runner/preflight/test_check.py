"""What a plan is refused for before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from permllm.components import components_in
from permllm.errors import UserError
from permllm.models.shape import ModelShape
from permllm.pipeline.reading import blaming, read_mapping, read_pipeline
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry
from permllm.runner.preflight import check
from permllm.runner.preflight.estimate import Estimate
from permllm.runs.plan import make_plan

FOUND = Estimate(
    parameters=10**8,
    runs=3,
    seconds=60.0,
    memory_bytes=3 * 10**9,
    least_memory_bytes=10**9,
    disk_bytes=10**9,
)
SHAPE = ModelShape(
    parameters=10**6,
    pruned=10**6,
    layers=1,
    hidden=64,
    vocabulary=100,
    positions=128,
    channels={"model.layers.0.mlp.up_proj": 64, "model.layers.0.mlp.down_proj": 90},
)


def pipeline(**changes: object) -> Pipeline:
    data = {"model": {"source": "directory", "path": "model"}, "pattern": "2:4", "track": {}}
    return read_mapping(data | changes, Registry.load())


def test_memory() -> None:
    assert check.check_memory(FOUND, available=4 * 10**9) == []
    (warning,) = check.check_memory(FOUND, available=2 * 10**9)
    assert "2.8 GiB" in warning
    with pytest.raises(UserError, match=r"not enough memory: at least 954 MiB"):
        check.check_memory(FOUND, available=10**9 - 1)


def test_disk(tmp_path: Path) -> None:
    assert check.check_disk(attrs.evolve(FOUND, disk_bytes=1), tmp_path / "a/b") == []
    message = r"not enough disk space: windows and exports of 3 pruned runs need about"
    with pytest.raises(UserError, match=message):
        check.check_disk(attrs.evolve(FOUND, disk_bytes=10**18), tmp_path / "a/b")


def test_what_a_run_has_written_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    cost = attrs.evolve(FOUND, disk_bytes=3000)
    with pytest.raises(UserError, match="not enough disk space"):
        check.check_disk(cost, tmp_path)
    (tmp_path / "runs/cp").mkdir(parents=True)
    (tmp_path / "runs/cp/file").write_bytes(bytes(2500))
    assert check.check_disk(cost, tmp_path) == []


def test_available_memory_is_that_of_this_machine() -> None:
    assert 10**7 < check.available_memory() < 10**14


def test_memory_of_a_container(tmp_path: Path) -> None:
    assert check.container_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("6000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert check.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("10000\n")
    assert check.container_memory(tmp_path) == 5000


def limit(folder: Path, version: int, limit: int | str, used: int, cached: int) -> None:
    names = {2: ("max", "current", ""), 1: ("limit_in_bytes", "usage_in_bytes", "total_")}[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
    (folder / f"memory.{names[1]}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 1\n{names[2]}inactive_file {cached}\n")


@pytest.mark.parametrize(("version", "none"), [(1, 9223372036854771712), (2, "max")])
def test_limits_of_both_versions_of_control_groups(
    tmp_path: Path, version: int, none: int | str
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit(root, version, none, 6000, 1000)
    assert check.container_memory(tmp_path) is None
    limit(root, version, 10000, 6000, 1000)
    assert check.container_memory(tmp_path) == 5000
    # Of a batch system: the group of the job is the limited one, that of the step is within it.
    job = root / "slurm/job_7"
    limit(job, version, 3000, 1000, 500)
    limit(job / "step_0", version, none, 1000, 500)
    line = {1: "5:cpuset,memory:", 2: "0::"}[version] + "/slurm/job_7/step_0"
    assert check.container_memory(tmp_path, f"3:pids:/other\n{line}\n") == 2500
    # Within a container the path is that of outside.
    assert check.container_memory(tmp_path, line.replace("slurm", "docker")) == 5000


def test_a_comparison_without_held_out_sequences_is_refused_at_its_place(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_pipeline(
        calibration={"dataset": {"name": "text", "path": "train.txt"}, "held_out": 0}
    )
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    with pytest.raises(UserError, match="held_out is 0, but fidelity compares") as caught:
        check.check_plan(plan, path)
    assert caught.value.line is not None
    assert path.read_text().splitlines()[caught.value.line - 1].strip() == "held_out: 0"
    assert "held_out to 1" in (caught.value.hint or "")


def test_without_a_comparison_no_sequence_has_to_be_held_out() -> None:
    check.check_held_out(pipeline(calibration={"held_out": 0}, evaluate=["perplexity"]), None)
    check.check_held_out(pipeline(calibration={"held_out": 1}, evaluate=["fidelity"]), None)


def test_folder_is_left_as_it_was(tmp_path: Path) -> None:
    check.check_folder(tmp_path / "runs/new")
    assert list(tmp_path.iterdir()) == []


def test_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        check.check_folder(tmp_path / "file/run")


def test_pattern_that_does_not_fit_names_the_linear() -> None:
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.down_proj has 90 input channels"):
        check.check_patterns(pipeline(), SHAPE)
    check.check_patterns(pipeline(layers={"skip": ["*.down_proj"]}), SHAPE)
    check.check_patterns(pipeline(pattern="1:2"), SHAPE)


def test_sequences_longer_than_the_model_takes() -> None:
    check.check_lengths(pipeline(calibration={"length": 128}), SHAPE)
    with pytest.raises(UserError, match="at most 128 tokens"):
        check.check_lengths(pipeline(calibration={"length": 129}), SHAPE)
    evaluate = [{"name": "perplexity", "length": 1024}]
    with pytest.raises(UserError, match="perplexity: length is 1024"):
        check.check_lengths(pipeline(calibration={"length": 8}, evaluate=evaluate), SHAPE)
    unlimited = attrs.evolve(SHAPE, positions=None)
    check.check_lengths(pipeline(calibration={"length": 4096}), unlimited)


def test_components_within_components_are_found() -> None:
    found = components_in(pipeline(evaluate=["perplexity"]))
    names = [component.name for component in found]
    assert {"wanda", "lcp", "cp", "mask", "perplexity", "python-docs"} <= set(names)
    assert names.count("python-docs") == 2


def look_at(file: Path) -> None:
    """Check the components and the model of a pipeline file."""
    read = read_pipeline(file, Registry.load())
    check.check_components(read, file)
    with blaming(file, "model"):
        read.model.check()


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("evaluate: [{name: perplexity, dataset: {name: text, path: no.txt}}]", (3, 12), "no.txt"),
        ("calibration: {dataset: {name: jsonl, path: no.jsonl}}", (3, 24), "no.jsonl"),
        ("calibration: {sequences: 2}", (1, 8), "folder"),
    ],
)
def test_what_is_not_there_is_named_at_its_place(
    line: str, place: tuple[int, int], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    model = "model: {source: directory, path: folder}"
    file.write_text(f'{model}\npattern: "2:4"\n{line}\n')
    with pytest.raises(UserError, match=said) as caught:
        look_at(file)
    error = caught.value
    assert (error.file, error.line, error.column) == (str(file), *place)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
CONFIGS = {
    "llama-2-7b": LLAMA | {"model_type": "llama", "intermediate_size": 11008},
    "llama-3.1-8b": LLAMA
    | {
        "model_type": "llama",
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "qwen2.5-7b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    },
    "opt-6.7b": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "word_embed_proj_dim": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    },
}
"""What the hub's config.json says of the models of ``pipelines/paper/``, as far as it counts."""

SIZES = {"llama-2-7b": 6.7, "llama-3.1-8b": 8.0, "qwen2.5-7b": 7.6, "opt-6.7b": 6.7}
"""Billions of parameters."""

PAPER = Path(__file__).parents[3] / "pipelines/paper"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_papers_pipelines_on_configurations_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    path = PAPER / f"{name}.yaml"
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    found = check.check_plan(plan, path, elsewhere=True)
    assert found.estimate.parameters / 1e9 == pytest.approx(SIZES[name], abs=0.05)
    assert len(plan.runs) == found.estimate.runs == 7
    learner = plan.runs[2].pipeline.layers.permutation
    assert (learner.name, getattr(learner, "passes", None)) == ("lcp", 50)
    assert not (tmp_path / "out").exists()


def test_every_pipeline_of_the_paper_is_checked() -> None:
    assert {path.stem for path in PAPER.glob("*.yaml")} == set(CONFIGS)


def test_what_does_not_fit_here_is_a_warning_where_it_runs_elsewhere(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline()
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    monkeypatch.setattr(check, "available_memory", lambda: 10**6)
    with pytest.raises(UserError, match="not enough memory"):
        check.check_plan(plan, path)
    (warning,) = check.check_plan(plan, path, elsewhere=True).warnings
    assert warning.startswith("on this machine, not enough memory")


def test_what_is_skipped_is_a_share_of_all_matrices() -> None:
    shape = attrs.evolve(
        SHAPE,
        matrices={
            "model.layers.0.mlp.up_proj": 60,
            "model.layers.0.mlp.experts": 0,
            "model.layers.0.mlp.experts[0]": 20,
            "model.layers.0.mlp.experts[1]": 20,
        },
    )
    assert check.skipped_share(pipeline(), shape) == 0
    for skip, share in (("*.up_proj", 0.6), ("*.experts", 0.4), ("*.experts[1]", 0.2)):
        assert check.skipped_share(pipeline(layers={"skip": [skip]}), shape) == share
    again = {"skip": ["*.mlp"], "overrides": [{"match": "*.up_proj", "skip": False}]}
    assert check.skipped_share(pipeline(layers=again), shape) == 0.4
    line, *_ = check.Checked(FOUND, (), 0.4).lines()
    assert line.endswith("; 40.0% of the decoder's weights are skipped")


def test_experts_have_to_fit_the_pattern() -> None:
    experts = {f"model.layers.0.mlp.experts.down_proj[{index}]": 30 for index in range(2)}
    shape = attrs.evolve(SHAPE, channels={}, experts=experts)
    with pytest.raises(
        UserError, match=r"down_proj\[0\] has 30 input channels, which 4 .*"
    ) as error:
        check.check_patterns(pipeline(), shape)
    assert error.value.hint is not None
    assert "layers.skip: ['model.layers.0.mlp.experts.down_proj']" in error.value.hint
    skipped = pipeline(layers={"skip": ["model.layers.0.mlp.experts.down_proj"]})
    check.check_patterns(skipped, shape)
