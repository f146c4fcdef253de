"""A causal language model as a chain of decoder layers.

The model's own forward pass does everything around the layers: it is called with
each layer replaced by a stub, so that embeddings, masks, position codes and the head
stay the model's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from permllm.core.statistics import Statistic
from permllm.errors import UserError
from permllm.models.calls import HIDDEN, LayerCall, LayerCalls
from permllm.models.linears import Group, Linear, replaced_parameters
from permllm.models.residency import Residency
from permllm.models.tracing import (
    LayerTrace,
    ProductWatch,
    check_order,
    find_layers,
    find_linears,
    matrix_entries,
    parameter_names,
    replaced_forwards,
)

__all__ = ["Decoder", "LayerCall", "LayerCalls"]

PROBE_LENGTH = 64
"""Tokens of the forward pass that a model is traced with, at most."""


@attrs.define(eq=False)
class Decoder:
    """The layers, linears and permutation groups of a model.

    Make one with :meth:`trace`. Linears are named by their module, layers counted
    from 0; see :class:`permllm.models.linears.Linear` for the orientation of weights.

    Attributes:
        model: the causal language model.
        layers: its decoder layers, in order.
        layer_names: their names in the model.
        linears: every linear that can be pruned, in order of execution.
        groups: the linears that read the same tensor, by group name.
        skipped: what looks like a linear and stays dense, with the reason.
        tuples: for each layer, how many values its forward returns, or None where it
            returns the hidden states alone.
        residency: where the parameters are while they compute.
        replaced: the homes that blocks of :meth:`substituted` keep, the outermost first.
    """

    model: Any
    layers: list[nn.Module]
    layer_names: list[str]
    linears: dict[str, Linear]
    groups: dict[str, Group]
    skipped: dict[str, str]
    tuples: tuple[int | None, ...]
    residency: Residency
    replaced: list[dict[nn.Parameter, Tensor]] = attrs.field(factory=list, repr=False)

    # --- finding out -------------------------------------------------------------

    @classmethod
    def trace(
        cls, model: Any, tokens: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Decoder:
        """Find the layers, linears and groups of a model by running it.

        The model is put into eval mode, and mixtures of experts are switched to the
        implementation that multiplies one expert at a time.

        Args:
            model: a causal language model of transformers.
            tokens: ``LongTensor[n, L]`` to run it on, of which two are used; arbitrary ones
                without.
            dtype: what the model computes in; None for the types of its parameters.

        Raises:
            UserError: the model cannot be taken apart, or reads tokens that are still to come;
                the message names the module.
        """
        model.eval()
        _multiply_experts_one_by_one(model)
        base, layers = find_layers(model)
        residency = Residency(model, layers, dtype)
        residency.place(residency.device, ())
        probe = _probe(model, tokens).to(residency.device)
        names = [f"{base}.{index}" for index in range(len(layers))]
        traces = [
            LayerTrace(*place) for place in zip(names, range(len(names)), layers, strict=True)
        ]
        tuples, logits = _run_traced(model, traces, probe, residency)
        decoder = cls(model, layers, names, {}, {}, {}, tuples, residency)
        with decoder.streamed():
            _check_causal(model, probe, logits)
        shared = parameter_names(model)
        for trace in traces:
            traced = find_linears(trace, shared)
            decoder.linears |= traced.linears
            decoder.groups |= traced.groups
            decoder.skipped |= traced.skipped
        if not decoder.linears:
            raise UserError(f"the layers of {type(model).__name__} hold no linear to prune")
        decoder._check_pieces(probe, logits)
        return decoder

    @property
    def entries(self) -> int:
        """How many numbers the matrices of the layers hold, pruned or not."""
        return matrix_entries(self.layers)

    @torch.no_grad()
    def _check_pieces(self, probe: Tensor, logits: Tensor) -> None:
        """Refuse a model that gives other logits when its layers run one at a time."""
        try:
            calls = self.embed(probe)
            hidden = calls.hidden
            for index in range(len(self.layers)):
                hidden = self.run_layer(index, hidden, calls)
            pieced = self.head(hidden, probe)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise self._stateful(f": {error}") from error
        wide = logits.float()
        limit = _tolerance(logits) * float(wide.abs().max().clamp_min(1e-6))
        if pieced.shape != logits.shape or float((pieced.float() - wide).abs().max()) > limit:
            raise self._stateful("")

    def _stateful(self, detail: str) -> UserError:
        return UserError(
            f"{type(self.model).__name__} cannot be run layer by layer, so its architecture "
            f"hands on more between {self.layer_names[0]} and {self.layer_names[-1]} than "
            f"hidden states{detail}"
        )

    # --- weights -----------------------------------------------------------------

    def weight(self, name: str) -> Tensor:
        """The current weight ``[C_out, C_in]`` of a linear, in the type of the computation.

        Without gradient, and a view where it is kept in that type.
        """
        linear = self.linears[name]
        parameter = self.layers[linear.layer].get_parameter(linear.parameter)
        return self.residency.widened(linear.view(parameter.detach()))

    @contextmanager
    def substituted(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Give the model other weights for the block.

        Args:
            weights: ``[C_out, C_in]`` by linear. Blocks may be nested.
        """
        kept: dict[nn.Parameter, Tensor] = {}
        try:
            for index, layer in enumerate(self.layers):
                own = dict(layer.named_parameters())
                homes = {name: self.residency.home(one) for name, one in own.items()}
                linears, place = self._linears_of(index), self.residency.widened
                new = replaced_parameters(homes, linears, weights, place)
                for name, tensor in new.items():
                    home = tensor.detach().contiguous()
                    kept[own[name]] = self.residency.replace(own[name], home)
            self.replaced.append(kept)
            yield
        finally:
            if self.replaced and self.replaced[-1] is kept:
                self.replaced.pop()
            for parameter, home in kept.items():
                self.residency.replace(parameter, home)

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Give the model back, for the block, what :meth:`substituted` took from it."""
        homes = {one: home for kept in reversed(self.replaced) for one, home in kept.items()}
        kept = {one: self.residency.replace(one, home) for one, home in homes.items()}
        try:
            yield
        finally:
            for parameter, home in kept.items():
                self.residency.replace(parameter, home)

    def place(self, device: torch.device | str, layers: Iterable[int] | None = None) -> None:
        """Have the model compute on a device.

        Args:
            device: where.
            layers: indices of those whose parameters stay there, in the type of the
                computation; all layers where it is None. The others visit it to run.
        """
        wanted = range(len(self.layers)) if layers is None else layers
        self.residency.place(torch.device(device), wanted)

    @contextmanager
    def streamed(self) -> Iterator[None]:
        """Let the model itself be called in the block: layers visit the device as they run.

        The next one is fetched meanwhile.
        """

        def make(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def visited(*args: Any, **kwargs: Any) -> Any:
                with self.visiting([index], then=index + 1):
                    return forward(*args, **kwargs)

            return visited

        with replaced_forwards(self.layers, make):
            try:
                yield
            finally:
                # Whoever called the model may have left it halfway.
                self.residency.drop_ahead()

    @contextmanager
    def visiting(
        self,
        layers: Collection[int],
        weights: Mapping[str, Tensor] | None = None,
        *,
        then: int | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Have some layers on the device for the block, in which they may run many times.

        Args:
            layers: their indices.
            weights: ``[C_out, C_in]`` by linear, those of other layers among them.
            then: index of the layer that visits next, which is fetched meanwhile; where the
                model has no such layer, none is.

        Yields:
            their own of the weights, on the device.
        """
        given = weights or {}
        own = [name for name in given if self.linears[name].layer in layers]
        following = self.layers[then] if then is not None and then < len(self.layers) else None
        with ExitStack() as stack:
            for place, index in enumerate(layers, 1):
                later = following if place == len(layers) else None
                stack.enter_context(self.residency.visiting(self.layers[index], later))
            yield {name: given[name].to(self.residency.device) for name in own}

    # --- running -----------------------------------------------------------------

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> LayerCalls:
        """Run everything before the layers.

        Args:
            tokens: ``LongTensor[b, L]``.
        """
        met: list[tuple[Tensor, LayerCall]] = []

        def record(index: int) -> Callable[..., Any]:
            def stub(*args: Any, **kwargs: Any) -> Any:
                met.append(LayerCall.of(args, kwargs))
                return self._returned(index, met[-1][0])

            return stub

        self._run_around(self._base(), tokens, record)
        return LayerCalls(met[0][0].detach(), tuple(call for _, call in met))

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        calls: LayerCalls,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The hidden states ``[b, L, H]`` after a layer.

        Gradients flow to ``hidden`` and ``weights``, and never to the parameters.

        Args:
            index: the layer.
            hidden: ``[b, L, H]``, what enters it.
            calls: from :meth:`embed`, for the same tokens.
            weights: ``[C_out, C_in]`` by linear, in place of the layer's own; names of
                other layers are ignored.
        """
        return self._run(index, hidden, calls, self._parameters(index, weights))

    @torch.no_grad()
    def statistics(
        self,
        index: int,
        hidden: Tensor,
        calls: LayerCalls,
        wanted: Sequence[Statistic],
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Run a layer and sum statistics of what its groups read.

        Args:
            index, hidden, calls, weights: as in :meth:`run_layer`.
            wanted: the statistics.

        Returns:
            the hidden states after the layer; and by group and statistic the sum over
            the batch's tokens. An expert that got no token has the sum over none.
        """
        groups = [group for group in self.groups.values() if group.layer == index]
        parameters = self._parameters(index, weights)
        # One linear of each group stands for all: they read the same tensor.
        leaders = {self._address(group.linears[0], parameters): group for group in groups}
        sums: dict[str, dict[str, Tensor]] = {group.name: {} for group in groups}

        def add(inputs: Tensor, weight: Tensor) -> None:
            group = leaders.get(weight.data_ptr())
            if group is not None:
                _add(sums[group.name], inputs.reshape(-1, group.channels), wanted)

        with ProductWatch(add):
            output = self._run(index, hidden, calls, parameters)
        for group in groups:
            if not sums[group.name]:
                _add(sums[group.name], hidden.new_zeros(0, group.channels), wanted)
        return output, sums

    def head(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The logits ``[b, L, V]`` for hidden states after the last layer.

        Args:
            hidden: ``[b, L, H]``; gradients flow back to it.
            tokens: ``LongTensor[b, L]``, of the same shape.
        """
        logits: Tensor = self._after(hidden, tokens).logits
        return logits

    # --- inside ------------------------------------------------------------------

    def _linears_of(self, index: int) -> list[Linear]:
        return [linear for linear in self.linears.values() if linear.layer == index]

    def _parameters(self, index: int, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """A layer's parameters by name, with replaced weights, else without gradient."""
        own = {name: one.detach() for name, one in self.layers[index].named_parameters()}
        place = self.residency.visit
        new = replaced_parameters(own, self._linears_of(index), weights or {}, place)
        return {name: new[name] if name in new else place(one) for name, one in own.items()}

    def _address(self, name: str, parameters: Mapping[str, Tensor]) -> int:
        linear = self.linears[name]
        return linear.view(parameters[linear.parameter]).data_ptr()

    def _run(
        self, index: int, hidden: Tensor, calls: LayerCalls, parameters: dict[str, Tensor]
    ) -> Tensor:
        args, kwargs = calls.layers[index].with_hidden(hidden)
        output = torch.func.functional_call(self.layers[index], parameters, args, kwargs)
        return output[0] if self.tuples[index] is not None else output

    def _returned(self, index: int, hidden: Tensor) -> Any:
        """What a layer returns for these hidden states."""
        count = self.tuples[index]
        return hidden if count is None else (hidden, *[None] * (count - 1))

    def _base(self) -> Any:
        """The model without its head, where that part holds the layers."""
        base = getattr(self.model, "base_model", self.model)
        inside = {id(module) for module in base.modules()}
        return base if all(id(layer) in inside for layer in self.layers) else self.model

    def _after(self, hidden: Tensor, tokens: Tensor) -> Any:
        """The output of the model whose last layer gives ``hidden``."""
        last = len(self.layers) - 1

        def skip(index: int) -> Callable[..., Any]:
            def stub(*args: Any, **kwargs: Any) -> Any:
                given = hidden if index == last else LayerCall.of(args, kwargs)[0]
                return self._returned(index, given)

            return stub

        return self._run_around(self.model, tokens, skip)

    def _run_around(
        self, model: Any, tokens: Tensor, make: Callable[[int], Callable[..., Any]]
    ) -> Any:
        """A forward pass with stubs for layers and without gradients for parameters."""
        inside = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        around = [p for p in self.model.parameters() if id(p) not in inside and p.requires_grad]
        with replaced_forwards(self.layers, lambda index, forward: make(index)):
            try:
                for parameter in around:
                    parameter.requires_grad_(False)
                return model(input_ids=tokens, use_cache=False)
            finally:
                for parameter in around:
                    parameter.requires_grad_(True)


def _run_traced(
    model: Any, traces: Sequence[LayerTrace], probe: Tensor, residency: Residency
) -> tuple[tuple[int | None, ...], Tensor]:
    """Run a model and record what its layers do; their tuples, and the logits."""
    order: list[int] = []
    tuples: dict[int, int | None] = {}

    def make(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            order.append(index)
            if not args and HIDDEN not in kwargs:
                raise UserError(f"{traces[index].name} is called without '{HIDDEN}'")
            _check_hidden(traces[index].name, args[0] if args else kwargs[HIDDEN], probe)
            layer = traces[index]
            with residency.visiting(layer.module), layer.watching():
                output = forward(*args, **kwargs)
            tuples[index] = len(output) if isinstance(output, tuple) else None
            return output

        return watched

    layers = [trace.module for trace in traces]
    try:
        with torch.no_grad(), replaced_forwards(layers, make):
            logits = model(input_ids=probe, use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{type(model).__name__} fails in a forward pass: {error}") from error
    check_order(order, [trace.name for trace in traces])
    return tuple(tuples[index] for index in range(len(traces))), logits


def _check_hidden(title: str, hidden: Any, probe: Tensor) -> None:
    """Refuse a layer that reads something else than ``[b, L, H]``.

    Raises:
        UserError: it names the layer.
    """
    if isinstance(hidden, Tensor) and hidden.dim() == 3 and hidden.shape[:2] == probe.shape:
        return
    read = list(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
    raise UserError(
        f"{title} reads {read} for {len(probe)} sequences of {probe.shape[1]} tokens, and not "
        "hidden states [sequences, tokens, channels]",
        hint="models with several streams of hidden states, or with tokens or streams on the "
        "first axis, are not pruned",
    )


@torch.no_grad()
def _check_causal(model: Any, probe: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits depend on later tokens: its perplexity would mean nothing.

    Raises:
        UserError: they do.
    """
    changed = probe.clone()
    changed[:, -1] = (probe[:, -1] + 1) % model.get_input_embeddings().num_embeddings
    wide, other = logits.float(), model(input_ids=changed, use_cache=False).logits.float()
    limit = _tolerance(logits) * float(wide.abs().max().clamp_min(1e-6))
    if float((wide - other)[:, :-1].abs().max()) > limit:
        raise UserError(
            f"{type(model).__name__} reads tokens that are still to come: with another last "
            "token the logits of those before it are others",
            hint="an encoder is no language model; one that is to be a decoder says so in "
            "its config.json (is_decoder: true)",
        )


def _tolerance(logits: Tensor) -> float:
    """By how much logits may differ that are summed another way, relative to the largest."""
    return 1e-4 if logits.dtype in (torch.float32, torch.float64) else 5e-2


def _probe(model: Any, tokens: Tensor | None) -> Tensor:
    """``LongTensor[2, L]``: two sequences, so that the axes of hidden states can be told."""
    if tokens is None:
        known = model.get_input_embeddings().num_embeddings
        tokens = (torch.arange(16) % known)[None]
    tokens = tokens[:2, :PROBE_LENGTH]
    return tokens if len(tokens) == 2 else torch.cat([tokens, tokens.roll(1, dims=1)])


def _multiply_experts_one_by_one(model: Any) -> None:
    experts = any(parameter.dim() == 3 for parameter in model.parameters())
    if experts and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def _add(sums: dict[str, Tensor], inputs: Tensor, wanted: Sequence[Statistic]) -> None:
    for statistic in wanted:
        share = statistic.partial(inputs)
        sums[statistic.name] = sums[statistic.name] + share if statistic.name in sums else share
