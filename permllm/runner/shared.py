"""What the runs of a plan share: the model, its layout, calibration tokens and kept results."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor

from permllm.contexts.sequences import Sequences
from permllm.folding.constraints import Constraints
from permllm.folding.layout import Layout
from permllm.models.checks import unknown_tokens
from permllm.models.decoder import Decoder
from permllm.models.devices import pick_device, pick_dtype
from permllm.models.fingerprint import fingerprint
from permllm.models.loading import LoadedModel, load, load_tokenizer
from permllm.models.origin import Origin, origin_of
from permllm.pipeline.schema import Calibration, Layers
from permllm.registry import Registry
from permllm.runner.caching.keys import (
    component_key,
    digest,
    machine,
    own_code,
    rounding,
)
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import Cache
from permllm.runner.calibration import read_sequences, sequences_of, wished_sequences
from permllm.runner.opening import open_decoder
from permllm.runner.reporting import Reporter, hooks_of
from permllm.runs.plan import Plan, Run
from permllm.world import ALONE, World


class Shared:
    """What the runs of a plan share.

    Model and decoder are loaded when the first of them is needed: where every result is
    there already, none is.

    Args:
        plan: the runs.
        registry: has the observers.
        cache: keeps what stages compute.
        world: the processes that do the runs together.
        hook: is told how they go; the registry's observers where it is None.
    """

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        cache: Cache,
        world: World = ALONE,
        hook: Any = None,
    ) -> None:
        self.plan, self.registry = plan, registry
        self.world = world
        self.reporter = Reporter(hooks_of(registry, world) if hook is None else hook, None)
        pipeline = plan.pipeline
        world.take_gpu(pipeline.device)
        self.device = pick_device(pipeline.device)
        self.dtype = pick_dtype(pipeline.dtype, self.device)
        self.reporter.progress("looking at the model", 0, 1)
        self.fingerprint = fingerprint(pipeline.model)
        self.reporter.progress("looking at the model", 1, 1)
        self.machine = machine(self.device, self.dtype)
        if world.shards > 1:
            # They decide how sums round.
            self.machine["shards"] = world.shards
        base = digest(self.fingerprint, self.machine, own_code())
        told = lambda *what: self.reporter.reused(*what)  # noqa: E731
        waits = lambda stage, over: self.reporter.progress(stage, over, 1)  # noqa: E731
        self.stages = Stages(cache, base, rounding(), told, waits, world)
        # Datasets with mappings among their options have no hash.
        self._sequences: list[tuple[tuple[Calibration, int], Sequences]] = []

    def turn_to(self, run: Run | None) -> None:
        """Tell observers from now on of this run."""
        self.reporter = Reporter(self.reporter.hook, run)

    @cached_property
    def model(self) -> LoadedModel:
        """The dense model and its tokenizer."""
        self.reporter.progress("loading the model", 0, 1)
        model = load(self.plan.pipeline.model, self.dtype, self.tokenizer, as_saved=True)
        self.reporter.progress("loading the model", 1, 1)
        return model

    @cached_property
    def origin(self) -> Origin:
        """Which published model it is; to read that from a GGUF file takes seconds."""
        return origin_of(self.plan.pipeline.model)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.plan.pipeline.model)

    @cached_property
    def decoder(self) -> Decoder:
        """The dense model as a chain of layers."""
        loaded = self.model
        probe = self.sequences(self.plan.dense).tokens if self.plan.runs else None
        self.reporter.progress("tracing the model", 0, 1)
        decoder = open_decoder(loaded.model, loaded.tokenizer, probe, self.dtype)
        self.reporter.progress("tracing the model", 1, 1)
        if unknown := unknown_tokens(loaded.tokenizer, loaded.model):
            self.reporter.warn(
                f"the tokenizer has {', '.join(unknown)}, for which the model has no embeddings; "
                "text with such tokens is refused"
            )
        reasons: dict[str, list[str]] = {}
        for name, reason in decoder.skipped.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            self.reporter.warn(f"{which} stay dense: {reason}")
        return decoder

    @cached_property
    def layout(self) -> Layout:
        """How permutations of the model can be stored."""
        return Layout(self.decoder)

    def constraints(self, layers: Layers) -> Constraints:
        """What permutations the model's groups may get by the options of ``layers``."""
        if not layers.permutation.reorders:
            return Constraints()
        experts = any(linear.index is not None for linear in self.decoder.linears.values())
        if not (layers.foldable or layers.residual != "free" or experts):
            return Constraints()
        stage = "looking for orders that fold"
        self.reporter.progress(stage, 0, 1)
        constraints = self.layout.constraints(foldable=layers.foldable, residual=layers.residual)
        self.reporter.progress(stage, 1, 1)
        return constraints

    def sequences(self, run: Run) -> Sequences:
        """A run's calibration tokens, read once for runs that want the same.

        The dense model's are those of the first run.
        """
        pipeline = (self.plan.runs[0] if run is self.plan.dense else run).pipeline
        wanted = pipeline.calibration, wished_sequences(pipeline)
        for known, sequences in self._sequences:
            if known == wanted:
                return sequences
        sequences = self._read(*wanted)
        self._sequences.append((wanted, sequences))
        return sequences

    def _read(self, calibration: Calibration, learning: int) -> Sequences:
        stage = "reading the calibration text"

        def make(log: list[Any]) -> dict[str, Tensor]:
            self.reporter.progress(stage, 0, 1)
            sequences = read_sequences(calibration, self.tokenizer, learning)
            self.reporter.progress(stage, 1, 1)
            return {"tokens": sequences.tokens}

        key = self.stages.key("tokens", lambda: [component_key(calibration, "train"), learning])
        tokens = self.stages.tensors("tokens", key, make, stage=stage).tensors["tokens"]
        sequences = sequences_of(calibration, tokens)
        if len(sequences.learning) < learning:
            self.reporter.warn(
                f"'{calibration.dataset.label()}' has {len(sequences.learning)} learning "
                f"sequences, and up to {learning} may be wanted: they are repeated after that"
            )
        return sequences
