"""One order for the whole residual stream, stored in everything that reads or writes it.

All layers add to the same hidden states. So where the hidden states are stored in another
order, everything along them moves: columns of embeddings, rows of the linears whose outputs
are added, norms, and columns of the linears that read them, the head among these. Then no
gather is needed. Which axes these are is seen by running each layer with made-up outputs of
its linears on hidden states in another order, and proved by the logits of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.models.linears import Linear, biases
from permllm.models.probing import FAILURES, LayerProbe, LayerRun

TOKENS = 6
"""Of the sequences that layers are run on."""

TRIES = 24
"""Inputs after which an expert that no token was routed to is given up."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of logits and hidden states, relative to the largest."""


@attrs.frozen(eq=False)
class Residual:
    """What lies along the residual stream.

    Attributes:
        channels: of the hidden states.
        groups: the groups that read it, which all need the same order, in order of
            execution.
        axes: by the full name of each parameter along it, the axes that move with it. A
            parameter with two names, such as a head's that is the embeddings', has both.
    """

    channels: int
    groups: tuple[str, ...]
    axes: dict[str, tuple[int, ...]]

    def reordered(self, name: str, parameter: Tensor, perm: Tensor) -> Tensor:
        """A parameter with the residual stream in another order.

        Args:
            name: its full name; others than those of ``axes`` stay as they are.
            parameter: its values.
            perm: ``LongTensor[channels]``.
        """
        for axis in self.axes.get(name, ()):
            parameter = parameter.index_select(axis, perm.to(parameter.device))
        return parameter


def find_residual(decoder: Decoder) -> Residual:
    """Find what lies along the residual stream, and prove it for a random order.

    Args:
        decoder: the model, dense or pruned, as a whole on one device.

    Raises:
        UserError: the stream cannot be put in another order; the message names the module.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=_device(decoder))
    size = decoder.embed(token).hidden.shape[-1]
    groups: list[str] = []
    axes = _around(decoder, size)
    for index in range(len(decoder.layers)):
        found = _LayerStream.found(decoder, index)
        groups += found.readers
        axes |= found.axes
    residual = Residual(size, tuple(groups), axes)
    generator = torch.Generator().manual_seed(0)
    prove_residual(decoder, residual, torch.randperm(size, generator=generator))
    return residual


@torch.no_grad()
def prove_residual(
    decoder: Decoder, residual: Residual, perm: Tensor, tokens: Tensor | None = None
) -> None:
    """Refuse an order of the residual stream with which the model gives other logits.

    Args:
        decoder: the model, as a whole on one device; it stays as it is.
        residual: what moves.
        perm: ``LongTensor[channels]``.
        tokens: ``LongTensor[b, L]`` to run it on; arbitrary ones without.

    Raises:
        UserError: it does; the message names the first layer that differs.
        ValueError: ``perm`` is no permutation of the channels.
    """
    if not is_permutation(perm, residual.channels):
        raise ValueError(f"this is no order of {residual.channels} channels")
    model, device = decoder.model, _device(decoder)
    if tokens is None:
        generator = torch.Generator().manual_seed(1)
        known = model.get_input_embeddings().num_embeddings
        tokens = torch.randint(known, (2, 16), generator=generator)
    own = dict(model.named_parameters())
    # In float32 at least, since in half precision every order gives other sums.
    wide = {name: _wide(parameter.detach()) for name, parameter in own.items()}
    moved = {name: residual.reordered(name, tensor, perm) for name, tensor in wide.items()}
    expected = _states(decoder, wide, tokens.to(device))
    got = _states(decoder, moved, tokens.to(device))
    names = ["the embeddings", *decoder.layer_names]
    order = perm.to(device)
    for name, before, after in zip(names, expected[:-1], got[:-1], strict=True):
        if not _same(before[..., order], after):
            raise _refused(f"{name}: its hidden states come in another order than asked for")
    if not _same(expected[-1], got[-1]):
        raise _refused("the final norm or the head: the logits are others")


# --- a layer ------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _LayerStream:
    """What of one layer lies along the residual stream."""

    readers: tuple[str, ...]
    axes: dict[str, tuple[int, ...]]

    @classmethod
    def found(cls, decoder: Decoder, index: int) -> _LayerStream:
        reason = ""
        for dtype in TOLERANCE:
            try:
                probe = LayerProbe(decoder, index, dtype, TOKENS, hollow=True)
                return cls._looked_for(probe)
            except FAILURES as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _refused(
            f"{decoder.layer_names[index]}: it cannot be run with other outputs of its "
            f"linears ({reason})"
        )

    @classmethod
    def _looked_for(cls, probe: LayerProbe) -> _LayerStream:
        decoder, title = probe.decoder, probe.decoder.layer_names[probe.index]
        writers = _writers(probe)
        others = _others(probe)
        readers = _readers(probe, writers, others)
        axes: dict[str, set[int]] = {name: {axis} for name, axis in others.items()}
        layer = decoder.layers[probe.index]
        for linear in probe.linears:
            rows, columns = (-1, -2) if linear.transposed else (-2, -1)
            dims = 2 if linear.index is None else 3
            if linear.parameter in writers:
                axes.setdefault(linear.parameter, set()).add(dims + rows)
                for bias in biases(layer, linear):
                    axes.setdefault(bias, set()).add(dims - 2)
            if linear.parameter in readers:
                axes.setdefault(linear.parameter, set()).add(dims + columns)
        groups = tuple(
            group.name
            for group in probe.groups
            if decoder.linears[group.linears[0]].parameter in readers
        )
        return cls(groups, {f"{title}.{name}": tuple(sorted(a)) for name, a in axes.items()})


def _writers(probe: LayerProbe) -> set[str]:
    """The parameters of the linears whose outputs reach the layer's without another linear.

    All experts count as one: some of them may see no token.
    """
    families: dict[str, list[Linear]] = {}
    for linear in probe.linears:
        if linear.c_out == probe.hidden_size:
            families.setdefault(linear.parameter, []).append(linear)
    plain = _run(probe, {}, None, 0).output
    writers = set()
    for parameter, family in families.items():
        changed = {linear.name: 1.25 for linear in family}
        if not torch.equal(_run(probe, {}, None, 0, scaled=changed).output, plain):
            writers.add(parameter)
    return writers


def _readers(probe: LayerProbe, writers: set[str], others: Mapping[str, int]) -> set[str]:
    """The parameters of the linears whose input takes the order of the residual stream.

    Raises:
        UserError: the input of a linear, or the layer's output, is in neither order.
    """
    size, title = probe.hidden_size, probe.decoder.layer_names[probe.index]
    perm = torch.randperm(size, generator=torch.Generator().manual_seed(probe.index))
    order = perm.to(probe.device)
    moved = {
        name: probe.parameters[name].index_select(axis, order) for name, axis in others.items()
    }
    rows = {linear.name: order for linear in probe.linears if linear.parameter in writers}
    experts = any(linear.index is not None for linear in probe.linears)
    limit = TOLERANCE[probe.dtype]
    readers: set[str] = set()
    left = {group.name for group in probe.groups}
    for seed in range(TRIES if experts else 1):
        before = _run(probe, {}, None, seed)
        after = _run(probe, rows, order, seed, moved)
        for name in sorted(left & set(before.inputs)):
            expected, got = before.inputs[name], after.inputs.get(name)
            group = probe.decoder.groups[name]
            if got is not None and group.channels == size and _same(expected[:, order], got, limit):
                readers |= {probe.decoder.linears[linear].parameter for linear in group.linears}
            elif got is None or not _same(expected, got, limit):
                raise _refused(f"{name}: what it reads is not in the order of the hidden states")
        left -= set(before.inputs)
        if not _same(before.output[..., order], after.output, limit):
            raise _refused(f"{title}: what it gives is not in the order of what it was given")
        if not left:
            break
    return readers


def _others(probe: LayerProbe) -> dict[str, int]:
    """The parameters of a layer that belong to no linear and have as many channels as it.

    These are its norms, and routers; by shape alone, to be tried. The last axis counts.
    """
    layer = probe.decoder.layers[probe.index]
    taken = {linear.parameter for linear in probe.linears}
    taken |= {bias for linear in probe.linears for bias in biases(layer, linear)}
    return {
        name: parameter.dim() - 1
        for name, parameter in probe.parameters.items()
        if name not in taken and parameter.dim() and parameter.shape[-1] == probe.hidden_size
    }


def _run(
    probe: LayerProbe,
    rows: Mapping[str, Tensor],
    order: Tensor | None,
    seed: int,
    parameters: Mapping[str, Tensor] | None = None,
    scaled: Mapping[str, float] | None = None,
) -> LayerRun:
    """Run a layer with made-up outputs of its linears.

    Args:
        probe: the layer.
        rows: by linear, the order in which its output comes.
        order: that of the hidden states.
        seed: of the hidden states and the outputs.
        parameters: some of the layer's, in place of its own.
        scaled: by linear, a factor of its output.
    """
    places = {linear.name: place for place, linear in enumerate(probe.linears)}

    def outputs(name: str, inputs: Tensor) -> Tensor:
        tokens, wide = inputs.numel() // inputs.shape[-1], probe.decoder.linears[name].c_out
        generator = torch.Generator().manual_seed(1000 * seed + places[name])
        made = torch.randn(tokens, wide, generator=generator).to(inputs)
        if name in rows:
            made = made[:, rows[name]]
        return (scaled or {}).get(name, 1.0) * made.reshape(*inputs.shape[:-1], wide)

    hidden = probe.hidden(4, TOKENS, seed)
    if order is not None:
        hidden = hidden[..., order]
    return probe.run(hidden, outputs=outputs, parameters=parameters)


# --- around the layers ----------------------------------------------------------------


def _around(decoder: Decoder, size: int) -> dict[str, tuple[int, ...]]:
    """The parameters outside the layers that have as many channels as the hidden states.

    Raises:
        UserError: a linear other than the head, which may read or write the stream.
    """
    model = decoder.model
    inside = {id(module) for layer in decoder.layers for module in layer.modules()}
    head = model.get_output_embeddings()
    axes: dict[str, tuple[int, ...]] = {}
    for title, module in model.named_modules():
        if id(module) in inside:
            continue
        if isinstance(module, nn.Linear) and module is not head and size in module.weight.shape:
            raise _refused(f"{title}: it is a linear between the hidden states and something else")
        for name, parameter in module.named_parameters(recurse=False):
            # The head's has one number for each token.
            bias = module is head and name == "bias"
            if parameter.dim() and parameter.shape[-1] == size and not bias:
                axes[f"{title}.{name}" if title else name] = (parameter.dim() - 1,)
    return axes


def _states(decoder: Decoder, parameters: Mapping[str, Tensor], tokens: Tensor) -> list[Tensor]:
    """The hidden states before the first and after every layer, and the logits."""
    kept = {name: parameter.data for name, parameter in decoder.model.named_parameters()}
    try:
        for name, parameter in decoder.model.named_parameters():
            parameter.data = parameters[name]
        return list(_stream(decoder, tokens))
    finally:
        for name, parameter in decoder.model.named_parameters():
            parameter.data = kept[name]


def _stream(decoder: Decoder, tokens: Tensor) -> Iterator[Tensor]:
    calls = decoder.embed(tokens)
    hidden = calls.hidden
    yield hidden
    for index in range(len(decoder.layers)):
        hidden = decoder.run_layer(index, hidden, calls)
        yield hidden
    yield decoder.head(hidden, tokens)


def _same(expected: Tensor, got: Tensor, tolerance: float = TOLERANCE[torch.float32]) -> bool:
    if expected.shape != got.shape:
        return False
    if not expected.numel():
        return True
    limit = tolerance * float(expected.abs().max().clamp_min(1e-12))
    return float((expected - got).abs().max()) <= limit


def _wide(tensor: Tensor) -> Tensor:
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if half else tensor


def _device(decoder: Decoder) -> torch.device:
    device: torch.device = decoder.model.get_input_embeddings().weight.device
    return device


def _refused(why: str) -> UserError:
    return UserError(
        f"the residual stream cannot be put in one order, because of {why}",
        hint="leave each group an order of its own, which is gathered where it does not fold",
    )
