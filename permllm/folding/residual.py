"""One order for the whole residual stream, folded into everything that writes or reads it.

The channels of the residual stream can be stored in any order, if embeddings, norms, the
rows of all linears that write to it and the columns of all that read it follow. Then the
inputs of query, key, value, gate and up come in that order by themselves, and no gather is
left. Which parameters these are is seen by running the layers, and proved by running them
again with everything moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from permllm.errors import UserError
from permllm.exhaustion import raise_if_out_of_memory
from permllm.folding.find import layer_shape
from permllm.folding.trial import FAILURES, LayerProbe, LayerRun
from permllm.models.decoder import Decoder
from permllm.models.linears import Linear, biases

BATCH, LENGTH = 8, 6
"""Of the hidden states on which layers are tried."""


@attrs.frozen(eq=False)
class Residual:
    """What follows when the residual stream is put in another order.

    Attributes:
        groups: those whose inputs come in that order.
        axes: by full parameter name the axes that move, counted from the end.
    """

    groups: tuple[str, ...]
    axes: dict[str, tuple[int, ...]]


def find_residual(decoder: Decoder) -> Residual:
    """Find and prove what follows the residual stream's order.

    Embeddings, every layer and the head are run with a random order of the stream.

    Raises:
        UserError: a part of the model does not follow; the message names it.
    """
    known: dict[tuple[object, ...], tuple[str, _Parts]] = {}
    groups: list[str] = []
    axes = _around(decoder)
    for index, title in enumerate(decoder.layer_names):
        shape = layer_shape(decoder, index)
        if shape not in known:
            known[shape] = title, _parts(decoder, index)
        source, parts = known[shape]
        groups += [title + name.removeprefix(source) for name in parts.groups]
        axes |= {f"{title}.{name}": moved for name, moved in parts.axes.items()}
    residual = Residual(tuple(name for name in decoder.groups if name in set(groups)), axes)
    _prove(decoder, residual)
    return residual


def moved(tensor: Tensor, axes: tuple[int, ...], permutation: Tensor) -> Tensor:
    """A tensor with some axes reordered: place ``i`` takes what was ``permutation[i]``."""
    for axis in axes:
        tensor = tensor.index_select(axis, permutation.to(tensor.device))
    return tensor


@contextmanager
def moved_around(
    decoder: Decoder, axes: Mapping[str, tuple[int, ...]], permutation: Tensor
) -> Iterator[None]:
    """Put what stands around the layers in the stream's order for the block."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    titles = tuple(f"{title}." for title in decoder.layer_names)
    try:
        for name, parameter in decoder.model.named_parameters():
            if name in axes and not name.startswith(titles):
                kept.append((parameter, parameter.data))
                parameter.data = moved(parameter.data, axes[name], permutation)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


# --- what follows -----------------------------------------------------------------


@attrs.frozen(eq=False)
class _Parts:
    """The groups of a layer that read the stream; the axes of its parameters that move."""

    groups: tuple[str, ...]
    axes: dict[str, tuple[int, ...]]


def _around(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """The axes of parameters around the layers: those as long as the stream is wide."""
    wide = _width(decoder)
    titles = tuple(f"{title}." for title in decoder.layer_names)
    return {
        name: axes
        for name, parameter in decoder.model.named_parameters()
        if not name.startswith(titles) and (axes := _by_shape(parameter, wide))
    }


def _by_shape(parameter: Tensor, wide: int) -> tuple[int, ...]:
    """The last axis if it is as long as the stream is wide, else the one before."""
    if parameter.dim() and parameter.shape[-1] == wide:
        return (-1,)
    return (-2,) if parameter.dim() == 2 and parameter.shape[0] == wide else ()


def _parts(decoder: Decoder, index: int) -> _Parts:
    """What reads and writes the stream in a layer, by running it with made-up outputs."""
    title = decoder.layer_names[index]
    for dtype in (torch.float64, torch.float32):
        try:
            return _Wiring(decoder, index, dtype).parts()
        except FAILURES as error:
            raise_if_out_of_memory(error)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise UserError(f"{title} cannot be run with other outputs of its linears ({reason})")


class _Wiring:
    """Runs of a layer in which all linears give zeros but one."""

    def __init__(self, decoder: Decoder, index: int, dtype: torch.dtype) -> None:
        self.layer, self.title = decoder.layers[index], decoder.layer_names[index]
        self.probe = LayerProbe(decoder, index, dtype, LENGTH, hollow=True)
        self.permutation = _shuffled(self.probe.hidden_size)
        own = {linear.parameter for linear in self.probe.linears}
        own |= {name for linear in self.probe.linears for name in biases(self.layer, linear)}
        self.others = {
            name: axes
            for name, parameter in self.probe.parameters.items()
            if name not in own and (axes := _by_shape(parameter, self.probe.hidden_size))
        }

    def parts(self) -> _Parts:
        plain, other = self._runs(None)
        readers = {
            linear.parameter
            for group in self.probe.groups
            if self._follows(plain.inputs.get(group.name), other.inputs.get(group.name))
            for linear in self.probe.linears
            if linear.name in group.linears
        }
        axes = dict(self.others)
        for linear in self._by_parameter():
            columns, rows = (-2, -1) if linear.transposed else (-1, -2)
            moves = (columns,) if linear.parameter in readers else ()
            if self._writes(linear, plain.output):
                moves = (*moves, rows)
                axes |= dict.fromkeys(biases(self.layer, linear), (-1,))
            if moves:
                axes[linear.parameter] = moves
        names = {linear.name for linear in self.probe.linears if linear.parameter in readers}
        groups = [group.name for group in self.probe.groups if names & set(group.linears)]
        return _Parts(tuple(groups), axes)

    def _by_parameter(self) -> list[Linear]:
        """One linear for each parameter: experts are all alike."""
        return list({linear.parameter: linear for linear in self.probe.linears}.values())

    def _writes(self, linear: Linear, without: Tensor) -> bool:
        """Whether a linear's output is added to the stream.

        Raises:
            UserError: it is, but its channels are not the stream's.
        """
        if linear.c_out != self.probe.hidden_size:
            return False
        plain, other = self._runs(linear.parameter)
        if torch.equal(plain.output, without):
            return False
        if not self._follows(plain.output, other.output):
            raise UserError(
                f"{linear.name} writes to the residual stream, but not channel by channel, so "
                "that the stream cannot be put in another order"
            )
        return True

    def _runs(self, parameter: str | None) -> tuple[LayerRun, LayerRun]:
        """A run, and one with the stream in another order; one parameter's linears give
        something, and all others zeros."""
        speaking = {one.name for one in self.probe.linears if one.parameter == parameter}
        sizes = {linear.name: linear.c_out for linear in self.probe.linears}
        permutation = self.permutation.to(self.probe.device)

        def run(hidden: Tensor, parameters: dict[str, Tensor], move: bool) -> LayerRun:
            def outputs(name: str, inputs: Tensor) -> Tensor:
                shape = (*inputs.shape[:-1], sizes[name])
                if name not in speaking:
                    return inputs.new_zeros(shape)
                generator = torch.Generator().manual_seed(1)
                made = torch.randn(shape, generator=generator).to(inputs)
                return made.index_select(-1, permutation) if move else made

            return self.probe.run(hidden, outputs=outputs, parameters=parameters)

        hidden = self.probe.hidden(BATCH, LENGTH, 0)
        others = {
            name: moved(self.probe.parameters[name], axes, permutation)
            for name, axes in self.others.items()
        }
        return run(hidden, {}, False), run(hidden.index_select(-1, permutation), others, True)

    def _follows(self, plain: Tensor | None, other: Tensor | None) -> bool:
        """Whether a tensor came in the other order, and that is to be seen."""
        if plain is None or other is None or plain.shape != other.shape or not plain.numel():
            return False
        if plain.shape[-1] != len(self.permutation):
            return False
        expected = plain.index_select(-1, self.permutation.to(plain.device))
        return _close(expected, other, 1e-4) and not _close(plain, other, 1e-2)


# --- proof ------------------------------------------------------------------------


def _prove(decoder: Decoder, residual: Residual) -> None:
    """Run everything in a random order of the stream.

    Raises:
        UserError: it names the first part that does not follow.
    """
    permutation = _shuffled(_width(decoder))
    embeddings = decoder.model.get_input_embeddings()
    device = embeddings.weight.device
    tokens = (torch.arange(2 * LENGTH, device=device) % embeddings.num_embeddings).reshape(2, -1)
    half = decoder.model.dtype in (torch.bfloat16, torch.float16)
    tolerance = 5e-2 if half else 1e-4
    with torch.no_grad():
        hidden = decoder.embed(tokens).hidden
        order = permutation.to(hidden.device)
        with moved_around(decoder, residual.axes, permutation):
            other = decoder.embed(tokens).hidden
        if not _close(hidden.index_select(-1, order), other, tolerance):
            raise _breaks("what stands before the layers")
        for index, title in enumerate(decoder.layer_names):
            if not _layer_follows(decoder, index, residual.axes, permutation):
                raise _breaks(title)
        logits = decoder.head(hidden, tokens)
        with moved_around(decoder, residual.axes, permutation):
            got = decoder.head(hidden.index_select(-1, order), tokens)
        if not _close(logits, got, tolerance):
            raise _breaks("what stands after the layers")


def _layer_follows(
    decoder: Decoder, index: int, axes: Mapping[str, tuple[int, ...]], permutation: Tensor
) -> bool:
    title = decoder.layer_names[index]
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        try:
            probe = LayerProbe(decoder, index, dtype, LENGTH)
            parameters = {
                name: moved(parameter, axes[f"{title}.{name}"], permutation)
                for name, parameter in probe.parameters.items()
                if f"{title}.{name}" in axes
            }
            order = permutation.to(probe.device)
            hidden = probe.hidden(BATCH, LENGTH, 0)
            plain = probe.run(hidden).output
            other = probe.run(hidden.index_select(-1, order), parameters=parameters).output
            return _close(plain.index_select(-1, order), other, tolerance)
        except FAILURES as error:
            raise_if_out_of_memory(error)
            continue
    return False


def _breaks(what: str) -> UserError:
    return UserError(
        f"the residual stream cannot be put in another order: {what} does not follow it",
        hint="learn an order for each group instead (without 'residual: shared')",
    )


def _close(expected: Tensor, got: Tensor, tolerance: float) -> bool:
    limit = tolerance * float(expected.abs().max().clamp_min(1e-12))
    return expected.shape == got.shape and float((expected - got).abs().max()) <= limit


def _shuffled(wide: int) -> Tensor:
    return torch.randperm(wide, generator=torch.Generator().manual_seed(0))


def _width(decoder: Decoder) -> int:
    device = decoder.model.get_input_embeddings().weight.device
    return decoder.embed(torch.zeros(1, 1, dtype=torch.long, device=device)).hidden.shape[-1]
