"""Which layers stay on the device, and which are copied there each time that they run."""

from __future__ import annotations

import torch

from permllm.models.decoder import Decoder
from permllm.runner.preflight.check import available_memory

SHARE = 0.5
"""Of the free memory, what copies of layers may take; the rest is for what is computed."""

WINDOW_BYTES = 16
"""What a window holds for each weight while it learns, about: scores, transposed copies, pruned
weights and their gradients."""


def place_layers(decoder: Decoder, device: torch.device, layers: range | None, stream: str) -> bool:
    """Have a model compute on a device, some layers of which are wanted again and again.

    Args:
        decoder: the model.
        device: where it computes.
        layers: those that are wanted; all where it is None.
        stream: ``always`` copies a layer each time that it runs, ``never`` once, ``auto`` once
            if the copies of all take no more than half of the memory that is free.

    Returns:
        whether they stay there.
    """
    wanted = range(len(decoder.layers)) if layers is None else layers
    stay = stream == "never"
    if stream == "auto":
        copied = decoder.residency.copied_bytes(wanted, device)
        # What lies there already is room that they may take again.
        room = free_memory(device) + decoder.residency.staying_bytes(device)
        stay = copied <= SHARE * room
    decoder.place(device, wanted if stay else ())
    return stay


def streams_window(decoder: Decoder, device: torch.device, layers: range, stream: str) -> bool:
    """Whether what a window holds of each layer is made when the layer runs, and not kept.

    Args:
        decoder, device, stream: as in :func:`place_layers`.
        layers: of the window. What a single one holds is there while it runs in any case.
    """
    if len(layers) == 1 or stream != "auto":
        return len(layers) > 1 and stream == "always"
    weights = decoder.entries * len(layers) // len(decoder.layers)
    return WINDOW_BYTES * weights > SHARE * free_memory(device)


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device; no limit is known of others than CUDA's.

    What PyTorch keeps of CUDA's memory for its next tensors is free, too.
    """
    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return 2**63
