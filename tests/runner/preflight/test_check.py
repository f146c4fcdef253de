"""What a plan is refused for before anything is loaded."""

from __future__ import annotations

import json
import math
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
from permllm.runner.preflight import check, machine
from permllm.runner.preflight.estimate import Estimate
from permllm.runner.preflight.footprint import Numbers
from permllm.runner.preflight.machine import KNOWN, Machine
from permllm.runs.plan import Plan, Run, make_plan
from permllm.units import memory

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


def memory_of(host: int | None, device: int | None = None, cost: Estimate = FOUND) -> list[str]:
    where = Machine("h100", 1e12, host=host, device=device)
    return check.check_memory(cost, where, lambda: "layers.window: 4 would need about 1.0 GiB")


def test_memory() -> None:
    assert memory_of(4 * 10**9) == []
    (warning,) = memory_of(2 * 10**9)
    assert "about 2.8 GiB are needed, 1.9 GiB are available; layers.window: 4 would" in warning
    with pytest.raises(UserError, match=r"not enough memory: at least 954 MiB") as caught:
        memory_of(10**9 - 1)
    assert caught.value.hint == "layers.window: 4 would need about 1.0 GiB"


def test_memory_of_a_device() -> None:
    cost = attrs.evolve(FOUND, device_bytes=6 * 10**9)
    assert memory_of(None, 8 * 10**9, cost) == []
    (warning,) = memory_of(4 * 10**9, 5 * 10**9, cost)
    assert warning.startswith("memory of h100 may not suffice: about 5.6 GiB are needed, 4.7 GiB")
    assert len(memory_of(2 * 10**9, 5 * 10**9, cost)) == 2


def test_memory_of_several_processes_is_added_up() -> None:
    three = attrs.evolve(FOUND, neighbours=3, other_memory_bytes=2 * 10**9)
    assert three.together_bytes == 7 * 10**9
    assert memory_of(7 * 10**9, cost=three) == []
    (warning,) = memory_of(7 * 10**9 - 1, cost=three)
    assert warning == (
        "memory of 3 processes may not suffice: about 6.5 GiB are needed, 6.5 GiB are available; "
        "there is room for 2 processes"
    )
    (warning,) = memory_of(3 * 10**9, cost=three)
    assert warning.endswith("; there is room for 1 process")
    # What a single one lacks, fewer do not help.
    least = attrs.evolve(three, least_memory_bytes=10**8)
    (warning,) = memory_of(3 * 10**9 - 1, cost=least)
    assert warning.endswith("; layers.window: 4 would need about 1.0 GiB")
    with pytest.raises(UserError, match=r"at least 2.8 GiB .* text of 3 processes, 2.8 GiB"):
        memory_of(3 * 10**9 - 1, cost=three)


def test_processes_that_share_a_machine_are_checked_together(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline()
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    one = check.check_plan(plan, path).estimate
    monkeypatch.setattr(machine, "available_memory", lambda: one.memory_bytes)
    assert check.check_plan(plan, path).warnings == ()
    apart = check.check_plan(plan, path, processes=2)
    assert apart.warnings == ()
    assert not any(line.startswith("memory:") for line in apart.lines())
    with pytest.raises(UserError, match="of 2 processes") as caught:
        check.check_plan(plan, path, processes=2, neighbours=2)
    assert caught.value.hint == "there is room for 1 process"


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


def test_an_exporter_refuses_a_pattern_before_anything_is_pruned(tmp_path: Path) -> None:
    export = [{"name": "sparse", "values": "int4", "group_size": 6}]
    with pytest.raises(UserError, match="group_size: 6 is no multiple of 4, of the pattern 2:4"):
        check.check_exports(pipeline(export=export), SHAPE, None)
    mixed = [{"match": "*.down_proj", "pattern": "1:3"}]
    fitting = [{"name": "sparse", "values": "int4", "group_size": 12}, "masked"]
    check.check_exports(pipeline(export=fitting, layers={"overrides": mixed}), SHAPE, None)
    other = [{"name": "sparse", "values": "int4", "group_size": 8}]
    with pytest.raises(UserError, match="group_size: 8 is no multiple of 3, of the pattern 1:3"):
        check.check_exports(pipeline(export=other, layers={"overrides": mixed}), SHAPE, None)


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
    monkeypatch.setattr(machine, "available_memory", lambda: 10**6)
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


LARGE = ModelShape(
    parameters=6_738_000_000,
    pruned=6_476_000_000,
    layers=32,
    hidden=4096,
    vocabulary=32_000,
    positions=4096,
    channels={f"model.layers.{index}.linear": 4096 for index in range(224)},
)
"""About LLaMA-2-7B's."""


def test_what_fits_is_found_and_named() -> None:
    """The whole model where that streams, else the largest window for which there is room."""
    layers = {"permutation": "lcp", "window": "all"}
    only = pipeline(layers=layers, calibration={"length": 1024}, stream="never")
    run = Run("only", only, {}, Path("out/runs/only"))
    plan = Plan(only, (run,), run, Path("out"))
    numbers = Numbers(2, 2, mapped=2)
    card = KNOWN["rtx4090"]
    assert check.estimate(plan, LARGE, numbers, card).device_bytes > 4 * 24e9
    streamed = check.fitting(plan, LARGE, numbers, card)
    assert streamed is not None
    assert streamed.startswith("stream: always would need about")
    assert streamed.endswith("GiB there")
    always = attrs.evolve(run, pipeline=attrs.evolve(only, stream="always"))
    # Where there is no room for it, no layer is fetched ahead.
    tiny = attrs.evolve(card, device=1)
    whole = check.estimate(attrs.evolve(plan, runs=(always,)), LARGE, numbers, tiny)
    small = attrs.evolve(card, device=whole.device_bytes - 1)
    smaller = check.fitting(plan, LARGE, numbers, small)
    assert smaller is not None
    assert smaller.startswith("layers.window: ")
    assert check.fitting(plan, LARGE, numbers, attrs.evolve(card, device=10**9)) is None


def test_an_estimate_for_another_machine_says_so(
    write_pipeline: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pipeline(stream="always")
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    monkeypatch.setattr(machine, "available_memory", lambda: 10**6)
    checked = check.check_plan(plan, path, elsewhere=True, on=KNOWN["h100"])
    assert checked.warnings == ()
    (line,) = [line for line in checked.lines() if "estimate" in line]
    assert line.startswith("estimate on h100: about ")
    assert " of the device's memory, " in line
    assert " copied to the device for " in line


BIG = Path(__file__).parents[3] / "pipelines/big"
DOCUMENTED = Path(__file__).parents[3] / "docs/pipeline-file.md"
BIG_CONFIGS = {
    "llama-3.1-70b": CONFIGS["llama-3.1-8b"]
    | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "qwen2.5-72b": CONFIGS["qwen2.5-7b"]
    | {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "mixtral-8x7b": LLAMA
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
    },
}


@pytest.mark.parametrize("name", BIG_CONFIGS)
def test_big_models_find_room_on_one_small_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BIG_CONFIGS[name] | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    path = BIG / f"{name}.yaml"
    plan = make_plan(path, Registry.load(), out=tmp_path / "out")
    found = check.check_plan(plan, path, elsewhere=True, on=KNOWN["rtx4090"])
    assert found.estimate.streamed
    assert 0 < found.estimate.device_bytes < 24e9
    assert not any("rtx4090" in warning for warning in found.warnings)
    cost = found.estimate
    taken = (cost.device_bytes, cost.memory_bytes, cost.disk_bytes, cost.copied_bytes)
    cells = (f"{cost.parameters / 1e9:.1f} B", *map(memory, taken), cost.time)
    assert f"| `{name}` | {' | '.join(cells)} |" in DOCUMENTED.read_text(encoding="utf-8")
    # Were it held as a whole, no GPU had room.
    whole = make_plan(path, Registry.load(), ["stream=never"], out=tmp_path / "out")
    resident = check.check_plan(whole, path, elsewhere=True, on=KNOWN["h200"])
    assert resident.estimate.device_bytes > 3 * 141e9
    assert any("stream: always would need" in warning for warning in resident.warnings)
    assert {one.stem for one in BIG.glob("*.yaml")} == set(BIG_CONFIGS)


PROCESSES = Path(__file__).parents[3] / "docs/many-processes.md"
CLUSTERS = {1: math.inf, 8: 450e9, 32: 50e9}
"""Bytes per second between so many GPUs: within a machine, and between four."""


@pytest.mark.parametrize("processes", CLUSTERS)
def test_processes_share_the_work_and_the_docs_say_what_that_takes(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BIG_CONFIGS["llama-3.1-70b"] | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    path = BIG / "llama-3.1-70b.yaml"
    cells = [str(processes)]
    found = []
    for grows in (1, processes):
        settings = [
            f"calibration.sequences={64 * grows}", f"layers.permutation.batch={8 * grows}"
        ]  # fmt: skip
        plan = make_plan(path, Registry.load(), settings, out=tmp_path / "out")
        on = attrs.evolve(KNOWN["h100"], processes=processes, network=CLUSTERS[processes])
        cost = check.check_plan(plan, path, elsewhere=True, on=on).estimate
        found.append(cost)
        cells += [cost.time, memory(cost.device_bytes), f"{cost.exchange_seconds:.2f} s"]
    assert f"| {' | '.join(cells)} |" in PROCESSES.read_text(encoding="utf-8")
    same, more = found
    assert (same.exchange_seconds > 0) == (processes > 1)
    # As many steps with as much for each process.
    assert more.device_bytes == pytest.approx(31.3 * 2**30, rel=0.01)
    assert more.copied_bytes == same.copied_bytes
    assert (same.device_bytes < more.device_bytes) == (processes > 1)
    assert (same.seconds < more.seconds) == (processes > 1)
    if processes > 1:
        assert f"for each of {processes} processes" in same.summary()
        assert "to add up gradients" in same.summary()
