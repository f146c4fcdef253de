"""Finds which rows of which linears make the channels that the next linears read.

The outputs of a layer's linears are made up. Each row's output is changed a little by a
random code of signs; how a channel answers to the codes tells the rows that it is made of.
One-token sequences are used: attention over a single token gives back its value, so that
queries and keys have no part in it. Which channels may be exchanged is then seen on longer
sequences, where heads attend differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from permllm.exhaustion import raise_if_out_of_memory
from permllm.folding.fold import Fold, NoFold, Producer, row_permutations
from permllm.folding.trial import FAILURES, LayerProbe
from permllm.models.decoder import Decoder
from permllm.models.linears import Group

STEP = 1e-3
"""By how much rows are changed, relative to outputs of about 1."""

MOST_ROWS = 4
"""Of one linear, that may make a channel."""

EXPLAINED = 1e-2
"""The share of a channel's answer that its rows may leave unexplained."""

CHUNK = 256
"""Channels that are explained at a time."""

TRIES = 64
"""Inputs after which an expert that no token was routed to is given up."""

TOKENS = 6
"""Of the sequences on which rows are exchanged."""


def find_wiring(decoder: Decoder, index: int) -> dict[str, Fold | NoFold]:
    """The folds that the wiring of a layer suggests, by group; none is proved.

    Args:
        decoder: the model.
        index: the layer.
    """
    groups = [group for group in decoder.groups.values() if group.layer == index]
    reason = ""
    # Some layers mix precisions in such a way that they run in float32 only.
    for dtype in (torch.float64, torch.float32):
        try:
            owners = _Owners.found(decoder, index, dtype)
            return _folds(decoder, index, dtype, owners)
        except FAILURES as error:
            raise_if_out_of_memory(error)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    why = NoFold(f"the layer cannot be run with other outputs of its linears ({reason})")
    return dict.fromkeys((group.name for group in groups), why)


# --- owners -----------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Owners:
    """For each group the rows that make its channels.

    Attributes:
        names: the layer's linears; a row's number is its place in its linear plus ``first``.
        first: the number of each linear's row 0.
        rows: by group ``LongTensor[C_in, k]``, the numbers, ascending; or why there are none.
    """

    names: list[str]
    first: list[int]
    rows: dict[str, Tensor | str]

    @classmethod
    def found(cls, decoder: Decoder, index: int, dtype: torch.dtype) -> _Owners:
        probe = LayerProbe(decoder, index, dtype, 1, hollow=True)
        names = [linear.name for linear in probe.linears]
        sizes = [linear.c_out for linear in probe.linears]
        first = [sum(sizes[:place]) for place in range(len(sizes))]
        owners = cls(names, first, {})
        parts: dict[str, list[Tensor]] = {}
        left = {group.name: group for group in probe.groups}
        for turn in range(max(len(group.linears) for group in probe.groups)):
            # One linear of each group at a time: what a query does to a channel must not
            # hide what a value does.
            changed = {g.linears[turn] for g in probe.groups if turn < len(g.linears)}
            for name, answers, codes in _answers(probe, changed, left, turn):
                near = _near(decoder, left[name], changed)
                rows = owners._explained(answers, {one: codes[one] for one in near})
                if rows is not None:
                    parts.setdefault(name, []).append(rows)
        for name in left:
            owners.rows[name] = _joined(parts.get(name, []), left[name].channels)
        return owners

    def _explained(self, answers: Tensor, codes: dict[str, Tensor]) -> Tensor | None:
        """The few rows that each channel answers to, ``[C_in, k]``; None if there are none.

        By orthogonal matching pursuit.

        Args:
            answers: ``[K, C_in]``.
            codes: by linear ``[K, C_out]``.
        """
        if not codes:
            return None
        start = dict(zip(self.names, self.first, strict=True))
        numbers = torch.cat([start[n] + torch.arange(c.shape[1]) for n, c in codes.items()])
        signs = torch.cat(list(codes.values()), 1).float()
        parts: list[Tensor] = []
        # The first channels tell where none are explained, and memory stays small.
        for part in answers.split(CHUNK, dim=1):
            chosen = _pursued(part, signs)
            if chosen is None or (parts and parts[0].shape[1] != chosen.shape[1]):
                return None
            parts.append(numbers[chosen].sort(1).values)
        return torch.cat(parts)


def _pursued(answers: Tensor, signs: Tensor) -> Tensor | None:
    """The columns of ``signs [K, rows]`` that make up each column of ``answers [K, C]``.

    Returns:
        ``LongTensor[C, k]``, or None where so few do not.
    """
    total = answers.norm(dim=0)
    if not (total > 1e-6 * len(answers) ** 0.5).all():
        return None
    wanted = answers.T[:, :, None]
    rest, chosen = answers, torch.zeros(answers.shape[1], 0, dtype=torch.long)
    for _ in range(MOST_ROWS):
        # Only the largest counts, so that single precision will do.
        best = (signs.T @ (rest / total).float()).abs().argmax(0)
        chosen = torch.cat([chosen, best[:, None]], 1)
        used = signs[:, chosen].permute(1, 0, 2).double()
        fit = used @ torch.linalg.lstsq(used, wanted).solution
        rest = (wanted - fit)[:, :, 0].T
        if (rest.norm(dim=0) <= EXPLAINED * total).all():
            return chosen
    return None


def _answers(
    probe: LayerProbe, changed: set[str], groups: dict[str, Group], turn: int
) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """For each group that answers at all: its name, how it answers, and the codes.

    Mixtures of experts are run on several inputs, until all experts were reached.
    """
    generator = torch.Generator().manual_seed(turn)
    widest = max(linear.c_out for linear in probe.linears)
    count = 16 * max(4, math.ceil(math.log2(widest)))
    codes: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for linear in probe.linears:
        if linear.name in changed:
            signs = torch.randint(2, (count, linear.c_out), generator=generator) * 2 - 1
            codes[linear.name] = signs.to(probe.device, probe.dtype)
    on_cpu = {name: code.double().cpu() for name, code in codes.items()}

    def outputs(name: str, inputs: Tensor) -> Tensor:
        shape = (*inputs.shape[:-1], len(base[name]))
        made = base[name].expand(2 * count, -1)
        if name in codes and inputs.numel() // inputs.shape[-1] == 2 * count:
            made = made + STEP * torch.cat([codes[name], -codes[name]])
        return made[: math.prod(shape[:-1])].reshape(shape)

    left = set(groups)
    for seed in range(TRIES):
        for linear in probe.linears:
            # Positive, so that no activation is flat there.
            values = torch.randn(linear.c_out, generator=generator).abs() + 0.5
            base[linear.name] = values.to(probe.device, probe.dtype)
        hidden = 4 * probe.hidden(1, 1, seed).expand(2 * count, -1, -1)
        run = probe.run(hidden, outputs=outputs)
        for name in sorted(left & set(run.inputs)):
            inputs = run.inputs[name]
            if len(inputs) != 2 * count:
                continue
            left.remove(name)
            answers = (inputs[:count] - inputs[count:]) / (2 * STEP)
            if float(answers.abs().max()) > 1e-6:
                yield name, answers.double().cpu(), on_cpu
        if not left:
            return


def _near(decoder: Decoder, group: Group, changed: set[str]) -> list[str]:
    """The changed linears that may feed a group: those before it, and of no other expert."""
    expert = decoder.linears[group.linears[0]].index
    before = list(decoder.linears)
    before = before[: before.index(group.linears[0])]
    return [
        name for name in before if name in changed and decoder.linears[name].index in (None, expert)
    ]


def _joined(parts: list[Tensor], channels: int) -> Tensor | str:
    """The rows from all linears together."""
    if not parts:
        return "its channels are not made one by one of rows of the layer's linears"
    assert all(len(rows) == channels for rows in parts)
    return torch.cat(parts, 1).sort(1).values


# --- atoms and segments -----------------------------------------------------------


def _folds(
    decoder: Decoder, index: int, dtype: torch.dtype, owners: _Owners
) -> dict[str, Fold | NoFold]:
    folds: dict[str, Fold | NoFold] = {}
    for name, rows in owners.rows.items():
        folds[name] = NoFold(rows) if isinstance(rows, str) else _atoms(rows, owners)
    candidates = {name: fold for name, fold in folds.items() if isinstance(fold, Fold)}
    if candidates:
        folds |= _with_segments(decoder, index, dtype, candidates)
    return folds


def _atoms(rows: Tensor, owners: _Owners) -> Fold | NoFold:
    """The layout of a group, all atoms in one segment."""
    atoms, atom_of, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(atoms.unique()) != atoms.numel():
        return NoFold("some rows take part in channels that other rows do not share")
    if len(counts.unique()) != 1:
        return NoFold("some rows make more channels than others")
    places = torch.bucketize(atoms, torch.tensor(owners.first), right=True) - 1
    if not bool((places == places[0]).all()):
        return NoFold("its channels are made of rows of different linears")
    by_atom = atom_of.argsort(stable=True).reshape(len(atoms), -1)
    order = by_atom[:, 0].argsort()
    atoms, layout = atoms[order], by_atom[order].T.contiguous()
    producers = []
    for place in places[0].unique().tolist():
        columns = (places[0] == place).nonzero()[:, 0]
        inside = atoms[:, columns].T - owners.first[place]
        producers.append(Producer(owners.names[place], inside.contiguous()))
    return Fold(layout, (layout.shape[1],), tuple(producers))


def _with_segments(
    decoder: Decoder, index: int, dtype: torch.dtype, folds: dict[str, Fold]
) -> dict[str, Fold | NoFold]:
    """Cut atoms into segments where neighbours cannot be exchanged.

    All neighbours (a, a + 1) with even a are exchanged in one run, those with odd a in
    another, and each channel is compared with that of its neighbour in a run without.
    """
    probe = LayerProbe(decoder, index, dtype, TOKENS, hollow=True)
    experts = any(linear.index is not None for linear in probe.linears)
    joined = {name: [False] * (fold.layout.shape[1] - 1) for name, fold in folds.items()}
    left = set(folds)
    for seed in range(TRIES if experts else 1):
        plain = _swapped(probe, seed, {})
        for parity in (0, 1):
            permutations = {name: _swap_order(fold, parity) for name, fold in folds.items()}
            rows = row_permutations(decoder, folds, permutations)
            changed = _swapped(probe, seed, rows)
            for name in left & set(plain):
                fold = folds[name]
                expected = plain[name][:, permutations[name]]
                size = expected.abs().amax(0).clamp_min(1e-6)
                same = (changed[name] - expected).abs().amax(0) <= 1e-4 * size
                for atom in range(parity, fold.layout.shape[1] - 1, 2):
                    joined[name][atom] = bool(same[fold.layout[:, atom : atom + 2]].all())
        left -= set(plain)
        if not left:
            break
    unreached = NoFold("no token reached it in a trial")
    return {
        name: unreached if name in left else attrs.evolve(fold, segments=_cut(joined[name]))
        for name, fold in folds.items()
    }


def _swapped(probe: LayerProbe, seed: int, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """What groups read when rows of made-up outputs are put in other orders."""
    sizes = {linear.name: linear.c_out for linear in probe.linears}
    places = {linear.name: place for place, linear in enumerate(probe.linears)}

    def outputs(name: str, inputs: Tensor) -> Tensor:
        tokens = inputs.numel() // inputs.shape[-1]
        generator = torch.Generator().manual_seed(1000 * seed + places[name])
        made = torch.randn(tokens, sizes[name], generator=generator)
        if name in rows:
            made = made[:, rows[name]]
        return made.to(inputs).reshape(*inputs.shape[:-1], sizes[name])

    return {
        name: inputs.cpu()
        for name, inputs in probe.run(probe.hidden(2, TOKENS, seed), outputs=outputs).inputs.items()
        if len(inputs)
    }


def _swap_order(fold: Fold, parity: int) -> Tensor:
    """The order of channels in which neighbouring atoms are exchanged."""
    order = torch.arange(fold.layout.shape[1])
    pairs = order[parity:]
    pairs = pairs[: len(pairs) // 2 * 2].reshape(-1, 2).clone()
    order[pairs] = pairs.flip(1)
    return fold.permutation(order)


def _cut(joined: list[bool]) -> tuple[int, ...]:
    sizes = [1]
    for same in joined:
        if same:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return tuple(sizes)
