"""Runs on a simulated device: nothing is misplaced, and they give what the CPU gives."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from safetensors.torch import load_file

from permllm import api
from permllm.api import run
from permllm.components import Observer
from permllm.contexts.window import Window
from permllm.hooks import hookimpl
from permllm.metrics.wanda import Wanda
from permllm.models.decoder import Decoder
from permllm.models.devices import pick_device
from permllm.permutations.cp import Cp
from permllm.pruners.mask import Mask
from permllm.runner.placing import place_layers
from permllm.testing.device import simulated_device
from permllm.testing.models import ARCHITECTURES, tiny_model
from permllm.testing.simulation.ledger import tensors_in
from permllm.testing.tokenizers import byte_tokenizer

CP = {"name": "cp", "rounds": 1, "steps": 0}
LCP = {"name": "lcp", "block": 8, "steps": 2, "batch": 2, "start": CP}
DISTIL = {"name": "distil", "steps": 2, "batch": 2}
LEARNED_MASK = {"name": "learned-mask", "steps": 2, "batch": 2}

WAYS: list[tuple[Any, Any, Any, str]] = [
    ("none", "sparsegpt", 1, "always"),
    (LCP, "mask", "all", "always"),
    (CP | {"steps": 2}, DISTIL, 1, "never"),
    (LCP, "sparsegpt", 1, "always"),
    ("greedy", "mask", "all", "never"),
    (LCP | {"recompute": True}, DISTIL, "all", "always"),
    (CP, "sparsegpt", "all", "always"),
    (LCP, "mask", 1, "never"),
    ("greedy", DISTIL, 1, "auto"),
    (CP, LEARNED_MASK, "all", "always"),
]
"""Learners, pruners, windows and streams, so that each meets each other one."""

EVALUATE = [
    {
        "name": "perplexity",
        "dataset": {"name": "text", "path": "test.txt"},
        "length": 16,
        "max_tokens": 64,
    },
    "fidelity",
]
CALIBRATION = {
    "dataset": {"name": "text", "path": "train.txt"},
    "sequences": 4,
    "length": 16,
    "held_out": 2,
    "batch_size": 2,
}


@attrs.frozen
class Watch(Observer):
    """Notes what is on the device whenever a window is finished."""

    name: ClassVar[str] = "watch"

    device: Any
    live: list[int] = attrs.field(factory=list)

    def watch(self, out: Path, warn: Any) -> object:
        return self

    @hookimpl
    def permllm_window_finished(self) -> None:
        self.live.append(self.device.live_bytes)


@attrs.frozen
class WatchExports(Observer):
    """Notes what PyTorch keeps of the device, beyond what is in use, when an export begins."""

    name: ClassVar[str] = "watch-exports"

    device: Any
    kept: list[int] = attrs.field(factory=list)

    def watch(self, out: Path, warn: Any) -> object:
        return self

    @hookimpl
    def permllm_progress(self, stage: str, done: int) -> None:
        if stage.startswith("export (") and not done:
            self.kept.append(self.device.reserved_bytes - self.device.live_bytes)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as the runs."""
    monkeypatch.setattr(api, "write_outcome", lambda *args, **kwargs: None)


Outcome = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


def outcome(path: Path, device: str, observers: tuple[Observer, ...] = ()) -> Outcome:
    """The figures of all runs of a pipeline, and every tensor that they save."""
    out = path.parent / f"out-{device}-{len(list(path.parent.iterdir()))}"
    results = run(path, [f"device={device}"], out=out, observers=observers)
    assert [one.error for one in results.runs if one.error] == []
    tensors = {
        f"{file.relative_to(out)} {name}": tensor
        for file in sorted((out / "runs").rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    assert tensors
    return [one.figures for one in results.runs], tensors


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


@pytest.mark.parametrize("number", range(len(ARCHITECTURES)), ids=ARCHITECTURES)
def test_every_architecture_gives_what_the_cpu_gives(
    number: int, write_pipeline: Callable[..., Path]
) -> None:
    learner, pruner, window, stream = WAYS[number % len(WAYS)]
    layers = {"permutation": learner, "pruner": pruner, "window": window}
    if number % 3 == 0:
        layers["allocation"] = {"name": "sensitivity", "sequences": 2}
    path = write_pipeline(
        ARCHITECTURES[number],
        layers=layers,
        stream=stream,
        calibration=CALIBRATION,
        evaluate=EVALUATE,
        export=[],
    )
    expected = outcome(path, "cpu")
    with simulated_device() as device:
        found = outcome(path, "cuda")
        assert device.faults == []
    assert device.copied_to_device > 0
    assert_same(found, expected)


@pytest.mark.parametrize("window", [1, "all"])
def test_what_components_are_given_is_on_the_device(
    window: Any, write_pipeline: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the host, they would compute there, to the same end."""
    given: dict[str, set[torch.device]] = {}

    def spy(kind: type, method: str, shown: Callable[..., list[Any]]) -> None:
        original = getattr(kind, method)

        def spied(self: Any, *args: Any) -> Any:
            devices = {one.device for one in tensors_in(shown(*args))}
            given.setdefault(f"{kind.__name__}.{method}", set()).update(devices)
            return original(self, *args)

        monkeypatch.setattr(kind, method, spied)

    def of_window(window: Window) -> list[Any]:
        of_groups = [[window.statistics(one), window.group_scores(one)] for one in window.groups]
        rows = window.learning
        states = [window.outputs({}, rows), window.targets(rows), window.layer_targets(rows)]
        return [of_groups, states, [window.weight(one) for one in window.linears]]

    spy(Wanda, "scores", lambda weight, statistics: [weight, statistics])
    spy(Mask, "prune", lambda weight, scores, pattern, statistics: [weight, scores, statistics])
    spy(Cp, "learn", of_window)
    layers = {"permutation": CP, "window": window}
    path = write_pipeline(
        "llama", layers=layers, stream="always", calibration=CALIBRATION, evaluate=[], export=[]
    )
    with simulated_device():
        outcome(path, "cuda")
    device = torch.device("cuda", 0)
    assert given == {key: {device} for key in ("Wanda.scores", "Mask.prune", "Cp.learn")}


@attrs.frozen
class Deep:
    """A model of many layers in a folder, beside a pipeline file.

    Attributes:
        path: of the file.
        bytes: that its weights take.
        layer_bytes: those of a layer.
    """

    path: Path
    bytes: int
    layer_bytes: int


@pytest.fixture
def deep(write_pipeline: Callable[..., Path], tmp_path: Path) -> Callable[..., Deep]:
    """Writes a model of so many layers of such a width and a pipeline, of these keywords."""

    def write(depth: int, width: int, **changes: Any) -> Deep:
        from transformers import AutoModelForCausalLM

        config = tiny_model("llama-gqa").config
        config.update({"num_hidden_layers": depth, "hidden_size": width, "head_dim": width // 4})
        config.update({"intermediate_size": width * 3 // 2})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / "deep")
        byte_tokenizer().save_pretrained(tmp_path / "deep")
        defaults = {"calibration": CALIBRATION, "evaluate": EVALUATE[:1], "export": []}
        path = write_pipeline("deep", **(defaults | changes))
        layer = sum(one.nbytes for one in model.model.layers[0].parameters())
        return Deep(path, sum(one.nbytes for one in model.parameters()), layer)

    return write


@pytest.mark.parametrize(
    ("learner", "pruner", "window"), [(LCP, "mask", 1), (CP, "sparsegpt", 2), ("none", DISTIL, 1)]
)
def test_live_bytes_are_flat_from_window_to_window(
    learner: Any, pruner: Any, window: int, deep: Callable[..., Deep]
) -> None:
    """No circle of Python's objects keeps anything: nothing looks for circles meanwhile."""
    layers = {"permutation": learner, "pruner": pruner, "window": window}
    model = deep(4, 32, layers=layers, stream="always")
    gc.collect()
    gc.disable()
    try:
        with simulated_device() as device:
            watch = Watch(device)
            outcome(model.path, "cuda", (watch,))
    finally:
        gc.enable()
    assert len(watch.live) == 4 // window
    around = model.bytes - 4 * model.layer_bytes
    # The buffers of positions are beside them.
    assert around <= watch.live[0] < around + 1000
    assert set(watch.live) == {watch.live[0]}


def test_what_learning_left_is_given_back_before_exports(deep: Callable[..., Deep]) -> None:
    layers = {"permutation": CP, "window": 1}
    model = deep(2, 32, layers=layers, evaluate=[], export=["masked"])
    with simulated_device() as device:
        watch = WatchExports(device)
        outcome(model.path, "cuda", (watch,))
    assert watch.kept == [0]


@pytest.mark.parametrize(
    ("learner", "depth", "width"),
    [
        (CP, 16, 32),
        # Learning takes about five layers and all logits, which are few in wide models only.
        (LCP | {"block": 4, "steps": 1, "start": "none"}, 24, 256),
    ],
    ids=["cp", "lcp"],
)
def test_a_model_of_four_times_the_device(
    learner: Any, depth: int, width: int, deep: Callable[..., Deep]
) -> None:
    """It is pruned, learned for in one window, measured and exported as on the CPU."""
    model = deep(
        depth,
        width,
        layers={"permutation": learner, "window": "all"},
        calibration=CALIBRATION | {"sequences": 2, "length": 8, "held_out": 0},
        stream="always",
        export=["permuted"],
    )
    limit = model.bytes // 4
    expected = outcome(model.path, "cpu")
    with simulated_device(limit) as device:
        found = outcome(model.path, "cuda")
    assert device.faults == []
    assert 0 < device.peak_bytes <= limit
    assert_same(found, expected)


def test_auto_streams_what_does_not_fit_and_keeps_what_does() -> None:
    """Memory that PyTorch keeps for its next tensors is free, and copies move to no purpose."""
    with simulated_device(2**20) as simulated:
        device = pick_device("cuda")
        decoder = Decoder.trace(tiny_model("llama-gqa"))
        # As much as may be is allocated and given back, as by whatever ran before.
        torch.empty(2**20, dtype=torch.uint8, device=device)
        assert place_layers(decoder, device, None, "auto")
        copied, live = simulated.copied_to_device, simulated.live_bytes
        assert place_layers(decoder, device, None, "auto")
        assert (simulated.copied_to_device, simulated.live_bytes) == (copied, live)
        taken = torch.empty(2**20 - live - 10_000, dtype=torch.uint8, device=device)
        assert not place_layers(decoder, device, None, "auto")
        assert simulated.live_bytes - taken.nbytes < live


def test_a_model_on_the_device_is_not_copied_there() -> None:
    with simulated_device() as simulated:
        decoder = Decoder.trace(tiny_model("llama-gqa").to(simulated.device))
        assert decoder.residency.copied_bytes(range(2), pick_device("cuda")) == 0
        copied = simulated.copied_to_device, simulated.live_bytes
        place_layers(decoder, pick_device("cuda"), None, "never")
        assert (simulated.copied_to_device, simulated.live_bytes) == copied


def test_layers_are_copied_as_narrow_as_they_are_saved() -> None:
    with simulated_device() as simulated:
        model = tiny_model("llama-gqa").to(torch.bfloat16)
        decoder = Decoder.trace(model, None, torch.float32)
        decoder.place(pick_device("cuda"))
        assert {one.dtype for one in model.parameters()} == {torch.float32}
        copied = sum(one.nbytes for one in model.parameters()) // 2
        assert copied <= simulated.copied_to_device < copied + 1000
