"""What a component is, and the interface of each kind of component.

A component is a frozen attrs class with a ``name``; its fields are its options in
a pipeline file. Declare them with :func:`option`, so that each has a type, a
default, a range and a line of help: the schema, the docs and the error messages
are made from these.

>>> import attrs
>>> from permllm.components import Metric, option
>>> @attrs.frozen
... class Power(Metric):
...     '''The weight's absolute value to a power.'''
...     name = "power"
...     exponent: float = option(2.0, help="exponent of the absolute value", minimum=0)
...     def scores(self, weight, statistics):
...         return weight.abs() ** self.exponent
>>> Power.summary()
"The weight's absolute value to a power."
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.given import Giver, kind_of
from permllm.option import option

if TYPE_CHECKING:
    from torch import Tensor

    from permllm.contexts.allocation import PrunedLinear
    from permllm.contexts.cost import ComponentCost, Workload
    from permllm.contexts.evaluation import EvaluationContext
    from permllm.contexts.export import ExportContext
    from permllm.contexts.window import Window
    from permllm.core.patterns import Pattern
    from permllm.core.statistics import Statistic

__all__ = [
    "KINDS",
    "Allocation",
    "Component",
    "Conversation",
    "Dataset",
    "Document",
    "Evaluator",
    "Exporter",
    "Metric",
    "Observer",
    "PermutationLearner",
    "Pruner",
    "components_in",
    "documents",
    "option",
]

EVALUATED_TOKENS = 16_384
"""Tokens that an evaluator is taken to read that does not say how many."""


class Component:
    """Base of every component: a name, and a docstring whose first line sums it up."""

    name: ClassVar[str]

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    def cost(self, workload: Workload) -> ComponentCost:
        """What it takes in a run, for estimates; by default what its options take that are
        components."""
        from permllm.contexts.cost import ComponentCost

        inner = (getattr(self, field.name) for field in attrs.fields(type(self)))  # type: ignore[arg-type]
        costs = (one.cost(workload) for one in inner if isinstance(one, Component))
        return sum(costs, ComponentCost())


class Metric(Component):
    """Says how important each weight of a linear is."""

    needs: ClassVar[tuple[Statistic, ...]] = ()
    """The statistics that :meth:`scores` reads."""

    def scores(self, weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Importance of every weight.

        Args:
            weight: ``[C_out, C_in]``.
            statistics: the sums that ``needs`` names, by name; in a run also ``sequences``, how
                many sequences they are over.

        Returns:
            ``[C_out, C_in]``, non-negative and finite, in float32 or better.
        """
        raise NotImplementedError

    def window_scores(self, window: Window, linears: Sequence[str]) -> dict[str, Tensor]:
        """Importance of every weight of some linears, from a look at the whole window.

        By default what :meth:`scores` gives for each. A metric overrides it that wants to
        know more than a weight and its statistics: names, the place in the model
        (``window.layer_of``), a seed (``window.seed``), or what the window gives and its
        gradients (``window.outputs``, ``window.gradients``). It is called once a window, while
        :meth:`scores` is called again for every layer where a pruner is sequential.

        Args:
            window: the window, which has no scores yet.
            linears: those that the metric is wanted for.

        Returns:
            ``[C_out, C_in]`` for each of ``linears``, as from :meth:`scores`.
        """
        return {
            linear: self.scores(window.weight(linear), window.statistics(window.group_of(linear)))
            for linear in linears
        }

    @classmethod
    def looks(cls) -> bool:
        """Whether scores depend on more than a weight and its statistics."""
        return cls.window_scores is not Metric.window_scores


class Allocation(Component):
    """Says how much of each linear is kept, within what the pipeline's pattern keeps of all."""

    needs: ClassVar[tuple[Statistic, ...]] = ()
    """Statistics that :meth:`figures` reads beyond those of the metric."""

    def cost(self, workload: Workload) -> ComponentCost:
        """What it takes in a run; by default a pass of the calibration through the model."""
        from permllm.contexts.cost import ComponentCost

        once = ComponentCost(tokens=workload.sequences * workload.length)
        return once + super().cost(workload)

    def figures(self, window: Window) -> dict[str, float]:
        """What it wants to know of the linears of one decoder layer.

        Called once for every decoder layer that has linears to prune, before any is pruned.

        Args:
            window: that layer with its metric's scores; nothing before it is pruned.

        Returns:
            numbers by name, such as by the linear's; no two layers' share one.
        """
        raise NotImplementedError

    def allocate(
        self, figures: Mapping[str, float], linears: Mapping[str, PrunedLinear]
    ) -> dict[str, Pattern]:
        """The pattern of each linear.

        Args:
            figures: those of all layers.
            linears: those that get the pipeline's pattern, at least one. What an override
                gives a pattern of its own is not among them.

        Returns:
            patterns by linear, one for all of a permutation group, which keep no more weights
            than the pipeline's pattern in sum. Linears that it leaves out keep that.
        """
        raise NotImplementedError


class PermutationLearner(Component):
    """Finds the order of the input channels of each permutation group of a window."""

    reorders: ClassVar[bool] = True
    """False for a learner that leaves every group in its original order."""

    only_scores: ClassVar[bool] = False
    """True if the orders depend on nothing but the groups' weights, scores, patterns and
    statistics and the window's seed: neither on other sequences nor on the model's outputs.
    Runs that learn from other text then share them."""

    seconds_per_group: ClassVar[float] = 0.0
    """What a search takes for a permutation group without a limit, about: for estimates."""

    needs: ClassVar[tuple[Statistic, ...]] = ()
    """Statistics that :meth:`learn` reads beyond those of the metric."""

    def cost(self, workload: Workload) -> ComponentCost:
        """What it takes in a run; by default ``seconds_per_group`` for every group."""
        from permllm.contexts.cost import ComponentCost

        search = ComponentCost(search_seconds=self.seconds_per_group * workload.groups)
        return search + super().cost(workload)

    def sequences(self, calibration: int) -> int:
        """How many learning sequences it wants, given that ``calibration`` are asked for."""
        return calibration

    def learn(self, window: Window) -> dict[str, Tensor]:
        """One permutation per group.

        Returns:
            for every name in ``window.groups`` a ``LongTensor[C_in]`` that holds each
            of ``0 … C_in-1`` once. Position ``i`` of the new order holds channel
            ``permutation[i]``.
        """
        raise NotImplementedError


class Pruner(Component):
    """Cuts a weight to N:M, and may update what it keeps."""

    needs: ClassVar[tuple[Statistic, ...]] = ()
    """The statistics that :meth:`prune` reads beyond those of the metric."""

    sequential: ClassVar[bool] = False
    """True if weights change, so that each layer wants statistics of pruned inputs."""

    refines_first: ClassVar[bool] = False
    """True if :meth:`refine` does not depend on permutations: it is then called before they are
    learned, with every group in its original order, so that learners see its scores, too."""

    seconds_per_linear: ClassVar[float] = 0.0
    """What cutting a linear takes, about: for estimates."""

    def cost(self, workload: Workload) -> ComponentCost:
        """What it takes in a run; by default ``seconds_per_linear`` for each of its linears."""
        from permllm.contexts.cost import ComponentCost

        cutting = ComponentCost(seconds=self.seconds_per_linear * len(workload.linears))
        return cutting + super().cost(workload)

    def sequences(self, calibration: int) -> int:
        """How many learning sequences it wants, given that ``calibration`` are asked for."""
        return calibration

    def refine(self, window: Window, permutations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores in place of the metric's, from a look at the whole window.

        Called once a window, before any of its linears is pruned, so that a pruner can
        learn what to keep through the window; with ``refines_first``, before permutations are
        learned. Most pruners have no use for it.

        Args:
            window: all groups of the window, pruned by this pruner or by others;
                ``window.linears_of(self)`` are its own.
            permutations: ``LongTensor[C_in]`` by group, the order in which they are pruned.

        Returns:
            ``[C_out, C_in]`` by linear, in original channel order, finite and
            non-negative. Linears that it leaves out keep the metric's scores.
        """
        return {}

    def prune(
        self, weight: Tensor, scores: Tensor, pattern: Pattern, statistics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The pruned weight and its mask. Everything is in permuted channel order.

        Args:
            weight, scores: ``[C_out, C_in]``.
            pattern: at most N of every M consecutive entries of a row are kept.
            statistics: the sums that ``needs`` names, by name, permuted alike.

        Returns:
            the new weight, of ``weight``'s shape and dtype, zero where the mask is
            False; and the mask, ``BoolTensor[C_out, C_in]``.
        """
        raise NotImplementedError

    def update(self, window: Window, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Other values for weights that are kept, from a look at the whole pruned window.

        Called once a window, after all of its linears are pruned. Most pruners have no use
        for it.

        Args:
            window: all groups of the window, pruned by this pruner or by others;
                ``window.linears_of(self)`` are its own.
            weights: ``[C_out, C_in]`` of every pruned linear, in original channel order.

        Returns:
            the same for some of its own linears, zero where the pruned weight is zero.
            Linears that it leaves out keep their weight.
        """
        return {}


class Evaluator(Component):
    """Measures a model."""

    compares: ClassVar[bool] = True
    """Whether the figures depend on the dense model or the held-out sequences of the
    context; where they do not, runs with other calibration text can share them."""

    needs_model: ClassVar[bool] = True
    """False for one that never runs the model, for which nothing of it is copied to the device:
    its parameters are where and in what type they were saved."""

    parallel: ClassVar[bool] = False
    """True for one that several processes may call at once, each of which does its share of the
    work by ``context.world``, and gets the same figures. Else the first does it for all."""

    repeatable: ClassVar[bool] = True
    """False for figures that vary from time to time, such as speed: they are measured anew
    instead of being taken from the cache."""

    def cost(self, workload: Workload) -> ComponentCost:
        """What it takes in a run; by default :data:`EVALUATED_TOKENS` tokens."""
        from permllm.contexts.cost import ComponentCost

        return ComponentCost(tokens=EVALUATED_TOKENS) + super().cost(workload)

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """Figures by name, such as ``{"perplexity/wikitext2": 37.0}``.

        Args:
            model: a causal language model of transformers, in eval mode.
            tokenizer: its tokenizer.
            context: what else there is: the dense model, held-out sequences, a place
                to report progress to.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise a UserError for what is wrong and can be known before a model is loaded.

        Be quick: look whether files exist, and do not read them through.
        """


@attrs.frozen
class Conversation:
    """Messages that the tokenizer's chat template makes a text of.

    Attributes:
        messages: each a mapping with ``role`` and ``content``.
        file, line: where they stand, for errors.
    """

    messages: tuple[Mapping[str, Any], ...]
    file: str | None = None
    line: int | None = None


Document = str | Conversation
"""What a source of text gives."""


class Dataset(Component):
    """A source of text, for calibration and for evaluation."""

    def texts(self, split: str) -> Iterator[Document]:
        """The documents that are not blank, always in the same order.

        Args:
            split: ``"train"`` or ``"test"``; a source without splits gives everything.
        """
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[Document]:
        """The documents with the blank ones among them, which published protocols join too.

        Only a source of rows, some of which are blank, has to say more than :meth:`texts`.
        """
        return self.texts(split)

    def check(self) -> None:
        """Raise a UserError for what is wrong and can be known without reading the text.

        Be quick: look whether files exist, and do not read them through.
        """

    def label(self) -> str:
        """A short name for tables, such as the file's stem."""
        return self.name

    def fingerprint(self, split: str) -> str:
        """A hash of the text of a split, by which results on another text are told apart.

        By default all texts are read. A source that can know more cheaply whether its
        text changed says so here.
        """
        digest = hashlib.sha256()
        for text in documents(self.texts(split), self):
            plain = text if isinstance(text, str) else json.dumps(text.messages, default=str)
            digest.update(plain.encode() + b"\0")
        return digest.hexdigest()


def documents(given: Any, dataset: Dataset) -> Iterator[Document]:
    """The documents that a data set gave, one after the other.

    Raises:
        RunFailed: it gave nothing to go through, or one that is no text.
    """
    giver = Giver("dataset", dataset)
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise giver.wrong(f"gave {kind_of(given)}, where texts are expected")
    for document in given:
        if not isinstance(document, str | Conversation):
            raise giver.wrong(f"gave {kind_of(document)} as a document, where a str is expected")
        yield document


class Exporter(Component):
    """Writes a pruned model to a folder.

    Attributes:
        stores_orders: whether weights are stored in their learned order. Orders that could
            neither be folded nor gathered are then refused before they are learned.
    """

    stores_orders: ClassVar[bool] = False

    def export(self, context: ExportContext, directory: Path) -> None:
        """Write the model of ``context`` to ``directory``, which exists and is empty.

        The runner renames the folder to its final name once this returns.
        """
        raise NotImplementedError

    def check_pattern(self, pattern: Pattern) -> None:
        """Refuse a pattern that it cannot write, before anything is pruned to it.

        Raises:
            UserError: it cannot.
        """

    def stored_bytes(self, parameters: int, pruned: int, itemsize: int, pattern: Pattern) -> int:
        """About what an export takes on the disk: all weights, unless it knows better.

        Args:
            parameters: of the model.
            pruned: of these, those of pruned weights.
            itemsize: bytes of a number in the model's dtype.
            pattern: of the pruned weights.
        """
        return parameters * itemsize


class Observer(Component):
    """Watches runs through the life-cycle hooks of :mod:`permllm.hookspecs`."""

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        """An object whose hook implementations are called until the pipeline ends.

        What it meets must not lose the run: an observer that cannot go on says so once
        through ``warn`` and is silent from then on. One whose hook raises is silenced, too.

        Args:
            out: the folder of the pipeline's run.
            warn: tells all observers, and so the user, what went wrong.
        """
        raise NotImplementedError


KINDS: dict[str, type[Component]] = {
    "metric": Metric,
    "allocation": Allocation,
    "permutation": PermutationLearner,
    "pruner": Pruner,
    "evaluator": Evaluator,
    "dataset": Dataset,
    "exporter": Exporter,
    "observer": Observer,
}
"""Every kind of component, by the name that the registry and messages use."""


def components_in(value: Any) -> Iterator[Component]:
    """Every component in a pipeline, those that are options of others included."""
    if isinstance(value, Component):
        yield value
    if attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from components_in(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from components_in(item)
