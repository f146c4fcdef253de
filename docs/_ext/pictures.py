"""The pictures of the pages on concepts and method, drawn from permllm's own functions."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from permllm.core.patterns import Pattern, nm_mask, retained_share
from permllm.core.placements import placement_gradient

PATTERN = Pattern(2, 4)
SCORES = torch.tensor(
    [
        [9.0, 8.0, 7.0, 1.0, 2.0, 1.0, 3.0, 1.0],
        [8.0, 9.0, 6.0, 2.0, 1.0, 2.0, 1.0, 3.0],
        [7.0, 8.0, 9.0, 1.0, 1.0, 3.0, 2.0, 1.0],
        [9.0, 6.0, 8.0, 3.0, 2.0, 1.0, 1.0, 2.0],
    ]
)
"""Scores of a small weight whose important channels stand side by side."""

PERM = torch.tensor([0, 1, 3, 4, 2, 6, 5, 7])
"""An order that parts them."""

INK, PALE, KEPT = "#1f3a5f", "#dfe6ee", "#d9822b"


def draw_all(folder: Path) -> None:
    """Draw every picture as an SVG with reproducible bytes."""
    with mpl.rc_context({"svg.hashsalt": "permllm", "svg.fonttype": "path", "font.size": 10}):
        _order(folder / "order.svg")
        _windows(folder / "windows.svg")
        _placements(folder / "placements.svg")


def _order(path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9))
    identity = torch.arange(SCORES.shape[1])
    for axis, title, permutation in zip(
        axes, ("as it is", "reordered"), (identity, PERM), strict=True
    ):
        share = retained_share(SCORES, PATTERN, permutation)
        _matrix(axis, SCORES[:, permutation], permutation)
        axis.set_title(f"{title}: {share:.0%} of the scores kept", color=INK)
    _save(figure, path)


def _matrix(axis: Axes, scores: Tensor, permutation: Tensor) -> None:
    """A matrix of scores with the kept entries framed and the groups of M parted."""
    mask = nm_mask(scores, PATTERN)
    rows, columns = scores.shape
    for row in range(rows):
        for column in range(columns):
            kept = bool(mask[row, column])
            x = column + 0.3 * (column // PATTERN.m)
            face = KEPT if kept else PALE
            axis.add_patch(Rectangle((x, row), 0.92, 0.92, facecolor=face, edgecolor="white"))
            axis.text(
                x + 0.46,
                row + 0.5,
                f"{scores[row, column]:.0f}",
                ha="center",
                va="center",
                color="white" if kept else INK,
            )
    for column in range(columns):
        x = column + 0.3 * (column // PATTERN.m) + 0.46
        axis.text(
            x, -0.35, str(int(permutation[column])), ha="center", va="center", color=INK, fontsize=8
        )
    axis.set_xlim(-0.1, columns + 0.4)
    axis.set_ylim(rows + 0.1, -0.7)
    axis.set_aspect("equal")
    axis.axis("off")


def _windows(path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8.4, 2.9))
    layers = 6
    for row, (label, size) in enumerate((("window: 1", 1), ("window: 3", 3), ("window: all", 6))):
        y = 2.2 * (2 - row)
        axis.text(-0.25, y + 0.6, label, ha="right", va="center", color=INK, family="monospace")
        for start in range(0, layers, size):
            axis.add_patch(
                FancyBboxPatch(
                    (start * 1.5 + 0.02, y - 0.1),
                    size * 1.5 - 0.22,
                    1.4,
                    boxstyle="round,pad=0,rounding_size=0.2",
                    facecolor="none",
                    edgecolor=KEPT,
                    linewidth=2,
                )
            )
        for layer in range(layers):
            x = layer * 1.5 + 0.15
            axis.add_patch(Rectangle((x, y + 0.1), 1.0, 1.0, facecolor=PALE, edgecolor="none"))
            axis.text(x + 0.5, y + 0.6, f"layer {layer}", ha="center", va="center", color=INK,
                      fontsize=8)  # fmt: skip
    axis.set_xlim(-2.2, layers * 1.5 + 0.1)
    axis.set_ylim(-0.4, 6.1)
    axis.axis("off")
    _save(figure, path)


def _placements(path: Path) -> None:
    """The gradient of a mask, and the placement gradient that it gives."""
    scores = SCORES.T.contiguous()
    gradient = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    here = torch.arange(len(scores))
    changes = placement_gradient(scores[None], gradient[None], here[None], PATTERN)[0]
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), width_ratios=(8, 8, 8))
    _matrix(axes[0], SCORES, torch.arange(len(scores)))
    axes[0].set_title("scores, and what is kept", color=INK)
    _heat(axes[1], gradient.T, "gradient of the mask, G", "channel", "row")
    _heat(axes[2], changes, "placement gradient", "place", "channel")
    for channel in range(len(scores)):
        axes[2].add_patch(
            Rectangle((channel - 0.5, channel - 0.5), 1, 1, facecolor="none", edgecolor=INK)
        )
    _save(figure, path)


def _heat(axis: Axes, values: Tensor, title: str, across: str, down: str) -> None:
    """A matrix in colours: orange where the loss would fall, purple where it would rise."""
    most = float(values.abs().max())
    axis.imshow(values, cmap="PuOr", vmin=-most, vmax=most)
    axis.set_title(title, color=INK)
    axis.set_xlabel(across, color=INK)
    axis.set_ylabel(down, color=INK)
    axis.set_xticks(range(values.shape[1]))
    axis.set_yticks(range(values.shape[0]))
    axis.tick_params(length=0, labelsize=8, labelcolor=INK)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
