"""Training the masks of a window's linears (MaskLLM, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.training.loop import Step, Trainee
from permllm_maskllm.candidates import candidate_masks, ranked_places, similarity
from permllm_maskllm.optimiser import AdamW
from permllm_maskllm.options import MaskOptions
from permllm_maskllm.soft_mask import (
    GumbelPool,
    Sampling,
    chosen_mask,
    first_largest,
    masked_weight,
)

if TYPE_CHECKING:
    from permllm.contexts.window import Window

MEAN_DECAY = 0.9
"""AdamW's first β."""

Choices = dict[str, Tensor]
"""Each group's candidate, ``ShortTensor[C_out, G]`` by linear."""


@attrs.frozen(eq=False)
class LearnedLinear:
    """A linear whose mask is learned.

    Attributes:
        weight: ``[C_out, C_in]``, dense.
        places: ``[C_out, C_in]``, where each entry stands in ranked order.
        table: ``[C, M]``, the candidates.
        logits: ``[C, C_out, G]``, which train.
    """

    weight: Tensor
    places: Tensor
    table: Tensor
    logits: Tensor

    @classmethod
    def of(
        cls,
        options: MaskOptions,
        weight: Tensor,
        scores: Tensor,
        permutation: Tensor,
        pattern: Pattern,
        generator: torch.Generator,
    ) -> LearnedLinear:
        """A linear with its first logits, on the weight's device.

        Args:
            options: the pruner.
            weight, scores: ``[C_out, C_in]``, in original channel order.
            permutation: ``LongTensor[C_in]``, its order.
            pattern: its N:M.
            generator: of the random part of the logits.
        """
        places = ranked_places(scores, permutation, pattern)
        table = candidate_masks(pattern, options.candidates).to(weight.device)
        if options.prior == "scores":
            ranked = torch.empty_like(scores).scatter_(1, places.long(), scores)
            logits = options.prior_strength * kept_scores(ranked.float(), table)
        else:
            # Equation 10; where nothing is random there is no σ(π) to measure by.
            strength = options.prior_strength * (options.spread or 1.0)
            agreement = strength * similarity(table, pattern)
            logits = agreement[:, None, None].repeat(1, len(weight), scores.shape[1] // pattern.m)
        if options.spread:
            noise = torch.randn(logits.shape, generator=generator)
            logits.add_(noise.to(logits.device), alpha=options.spread)
        return cls(weight, places, table, logits.requires_grad_())

    def sampled(self, sampling: Sampling) -> Tensor:
        """The weight under a sampled mask; gradients flow to the logits."""
        return masked_weight(self.logits, self.weight, self.places, self.table, sampling)

    def mask(self, choice: Tensor) -> Tensor:
        """The hard mask of chosen candidates, float32 ``[C_out, C_in]``."""
        return chosen_mask(choice, self.places, self.table)


class LearnedMasks(Trainee[Choices]):
    """The logits of a window's masks.

    Args:
        options: the pruner.
        window: what is trained through.
        permutations: the order of each group, which stays as it is.
        linears: those whose masks are learned. The window's others keep the mask of their
            scores.

    """

    def __init__(
        self,
        options: MaskOptions,
        window: Window,
        permutations: Mapping[str, Tensor],
        linears: Sequence[str],
    ) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(window.seed + 2)
        self.linears: dict[str, LearnedLinear] = {}
        self.others: dict[str, Tensor] = {}
        for name, group in window.groups.items():
            permutation, pattern = permutations[name].to(window.device), window.pattern(name)
            for linear in group.linears:
                if linear not in linears:
                    self.others[linear] = one_shot(window, linear, permutation, pattern)
                    continue
                scores, weight = window.scores(linear), window.weight(linear).detach()
                first = LearnedLinear.of(options, weight, scores, permutation, pattern, generator)
                self.linears[linear] = first
        self.pool = GumbelPool(generator, window.device) if options.noise else None
        self.optimiser = AdamW(
            [linear.logits for linear in self.linears.values()],
            betas=(MEAN_DECAY, options.square_decay),
            epsilon=options.epsilon,
            weight_decay=options.weight_decay,
            dtype=getattr(torch, options.moments),
        )

    def weights(self, at: Step) -> dict[str, Tensor]:
        """The weights under masks that are sampled anew."""
        sampled = {
            name: linear.sampled(self.sampling(linear, at)) for name, linear in self.linears.items()
        }
        return {**self.others, **sampled}

    def sampling(self, linear: LearnedLinear, at: Step) -> Sampling:
        """How a linear's mask is made at a step, with noise of its own."""
        return Sampling(
            scale=self.scale(at),
            temperature=self.temperature(at),
            noise=self.options.noise,
            pool=self.pool,
            starts=self.pool.starts(len(linear.table)) if self.pool else [],
            hard=self.options.hard,
            penalty=at.between(self.options.regularisation, 0.0),
        )

    def scale(self, at: Step) -> float:
        """κ: linear from start to end."""
        return at.between(self.options.scale_start, self.options.scale_end)

    def temperature(self, at: Step) -> float:
        """τ: linear from start to end."""
        return at.between(self.options.temperature_start, self.options.temperature_end)

    def figures(self, at: Step) -> dict[str, float]:
        """Temperature and scale."""
        return {"temperature": self.temperature(at), "scale": self.scale(at)}

    def result(self, at: Step) -> tuple[Choices, dict[str, Tensor]]:
        """Each group's likeliest candidate, and the weights under these hard masks.

        Before the first step it is the one-shot mask, whatever the logits begin with.
        """
        choices, weights = {}, dict(self.others)
        for name, linear in self.linears.items():
            if at.number:
                choices[name] = first_largest(linear.logits)
            else:
                choices[name] = torch.zeros_like(linear.logits[0], dtype=torch.int16)
            weights[name] = linear.weight * linear.mask(choices[name]).to(linear.weight.dtype)
        return choices, weights

    def scores(self, choices: Choices) -> dict[str, Tensor]:
        """Scores that say what is kept: 1 or 0, float32 ``[C_out, C_in]`` by linear."""
        return {name: linear.mask(choices[name]) for name, linear in self.linears.items()}


def kept_scores(ranked: Tensor, table: Tensor) -> Tensor:
    """What each candidate keeps of its group's scores beyond what the one-shot mask keeps.

    Args:
        ranked: ``[C_out, C_in]``, scores in ranked order.
        table: ``[C, M]``.

    Returns:
        ``[C, C_out, G]``, zero for the first candidate and negative for those that keep
        less, in units of the group's mean score.
    """
    grouped = ranked.view(-1, table.shape[1])
    relative = grouped / grouped.mean(1, keepdim=True).clamp_min(1e-30)
    return ((table - table[0]) @ relative.T).view(len(table), len(ranked), -1)


def one_shot(window: Window, linear: str, permutation: Tensor, pattern: Pattern) -> Tensor:
    """A linear's weight under the mask of its scores, ``[C_out, C_in]``."""
    weight = window.weight(linear).detach()
    mask = nm_mask(window.scores(linear).index_select(1, permutation), pattern)
    return weight.masked_fill(~mask.index_select(1, invert(permutation)), 0)
