"""Which linears a pipeline prunes, and how: skips, overrides and their checks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase

import attrs

from permllm.components import Metric, Pruner
from permllm.core.patterns import Pattern
from permllm.core.statistics import SQUARE_SUM, TOKENS, Statistic
from permllm.errors import UserError, nearest
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.pipeline.schema import Layers, Pipeline


@attrs.frozen(eq=False)
class LinearSettings:
    """How one linear is pruned."""

    pattern: Pattern
    metric: Metric
    pruner: Pruner


def settle(decoder: Decoder, pipeline: Pipeline) -> dict[str, LinearSettings]:
    """The settings of every linear that is to be pruned, in order of execution.

    Raises:
        UserError: a pattern does not fit a linear, a group would need two patterns, a
            glob matches nothing, or nothing is left to prune.
    """
    names = [*decoder.linears, *decoder.skipped]
    for _, glob in globs(pipeline.layers):
        check_glob(glob, names)
    settings = {}
    for name, linear in decoder.linears.items():
        chosen = settings_of(name, pipeline)
        if chosen is None:
            continue
        check_channels(name, linear.c_in, chosen.pattern)
        settings[name] = chosen
    if not settings:
        raise UserError(
            "nothing is left to prune: layers.skip and the overrides match every linear"
        )
    check_unpruned(decoder, settings)
    return settings


def pruned_groups(
    decoder: Decoder, settings: Mapping[str, LinearSettings], layers: range
) -> dict[str, Group]:
    """The permutation groups of some layers, without the linears that stay dense.

    Raises:
        UserError: linears of one group have different patterns.
    """
    groups = {}
    for name, group in decoder.groups.items():
        linears = tuple(linear for linear in group.linears if linear in settings)
        if group.layer not in layers or not linears:
            continue
        patterns = {str(settings[linear].pattern) for linear in linears}
        if len(patterns) > 1:
            raise UserError(
                f"{', '.join(linears)} read the same tensor and share one permutation, so they "
                f"need one pattern, not {' and '.join(sorted(patterns))}",
                hint="give layers.overrides a match that covers all of them",
            )
        groups[name] = attrs.evolve(group, linears=linears)
    return groups


def needed(components: list[Metric | Pruner], extra: tuple[Statistic, ...] = ()) -> list[Statistic]:
    """The statistics that components read, without repetition, and those of the reports."""
    wanted = {SQUARE_SUM.name: SQUARE_SUM, TOKENS.name: TOKENS}
    for statistic in (*extra, *(need for component in components for need in component.needs)):
        if wanted.setdefault(statistic.name, statistic) != statistic:
            raise UserError(f"two components mean different statistics by '{statistic.name}'")
    return list(wanted.values())


def check_channels(name: str, channels: int, pattern: Pattern) -> None:
    """Whether M divides the input channels of a linear.

    Raises:
        UserError: it does not.
    """
    if channels % pattern.m:
        raise UserError(
            f"{name} has {channels} input channels, which {pattern.m} (of the pattern {pattern}) "
            "does not divide",
            # Experts of one parameter are all alike.
            hint="choose another pattern, or leave it dense with layers.skip: "
            f"['{name.partition('[')[0]}']",
        )


def check_unpruned(decoder: Decoder, settings: Mapping[str, LinearSettings]) -> None:
    """Refuse a model none of whose linears keeps more weights than it would after pruning.

    Raises:
        UserError: it is pruned already, as much or more.
    """
    left = {}
    for name, chosen in settings.items():
        weight = decoder.weight(name)
        left[name] = float(weight.count_nonzero()) / weight.numel()
        if left[name] > chosen.pattern.density:
            return
    name, share = next(iter(left.items()))
    raise UserError(
        "the model is pruned already: no linear has more weights left than "
        f"{settings[name].pattern} keeps ({name}: {1 - share:.1%} are zero)",
        hint="name the dense model that it was made from",
    )


def settings_of(name: str, pipeline: Pipeline) -> LinearSettings | None:
    """The settings of one linear, or None where it stays dense. Later overrides win."""
    layers = pipeline.layers
    skip = any(_matches(name, glob) for glob in layers.skip)
    pattern, metric, pruner = pipeline.pattern, layers.metric, layers.pruner
    for override in layers.overrides:
        if _matches(name, override.match):
            skip = skip if override.skip is None else override.skip
            pattern = override.pattern or pattern
            metric = override.metric or metric
            pruner = override.pruner or pruner
    return None if skip else LinearSettings(pattern, metric, pruner)


def _matches(name: str, glob: str) -> bool:
    """Whether the glob matches a module's name or that of a module around it.

    The number of an expert's slice may stand in it as it does in names: ``down_proj[3]``.
    """
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    globs = {glob, re.sub(r"(?<=\w)\[(\d+)\]", r"[[]\1]", glob)}
    return any(
        fnmatchcase(one, tried) for one in (*names, name.partition("[")[0]) for tried in globs
    )


def globs(layers: Layers) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every glob over the names of modules, after its place in the section ``layers``."""
    for index, glob in enumerate(layers.skip):
        yield ("skip", index), glob
    for index, override in enumerate(layers.overrides):
        yield ("overrides", index, "match"), override.match


def check_glob(glob: str, names: Collection[str]) -> None:
    """Refuse a glob that matches no module: it would silently do nothing.

    Args:
        glob: what is to match.
        names: of the linears in the decoder layers, at least one.

    Raises:
        UserError: with the nearest glob that matches.
    """
    # The head is no decoder layer's linear; naming it is a habit and does no harm.
    if glob == "lm_head" or any(_matches(name, glob) for name in names):
        return
    near = nearest(glob, _alike(glob, names)) or next(iter(names), glob)
    raise UserError(
        f"'{glob}' matches no linear of the model",
        hint=f"did you mean '{near}'? * stands for any text",
    )


def _alike(glob: str, names: Collection[str]) -> list[str]:
    """What may have been meant by a glob: what matches something and ends or begins like it."""
    parts = glob.split(".")
    depth = next((place for place, part in enumerate(parts) if "*" in part), len(parts))
    rest = parts[depth:]
    around = {".".join([*name.split(".")[:depth], *rest]) for name in names}
    ends = {f"*.{name.rpartition('.')[2]}" for name in names}
    if depth == len(parts):
        around |= set(names)
    return sorted(ends | {one for one in around if any(_matches(name, one) for name in names)})
