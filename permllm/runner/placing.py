"""Which layers stay on the device, and which are copied there each time that they run."""

from __future__ import annotations

import torch

from permllm.models.decoder import Decoder
from permllm.runner.preflight.footprint import SHARE, window_streams
from permllm.runner.preflight.machine import free_memory


def place_layers(decoder: Decoder, device: torch.device, layers: range | None, stream: str) -> None:
    """Have a model compute on a device, some layers of which are wanted again and again.

    Args:
        decoder: the model.
        device: where it computes.
        layers: those that are wanted; all where it is None.
        stream: ``always`` copies a layer each time that it runs, ``never`` once, ``auto`` once
            if the copies of all take no more than half of the memory that is free.
    """
    wanted = range(len(decoder.layers)) if layers is None else layers
    stay = stream == "never"
    if stream == "auto":
        # What lies there already is room that they may take again.
        decoder.place(device, ())
        copied = decoder.residency.copied_bytes(wanted, device)
        stay = copied <= SHARE * free_memory(device)
    decoder.place(device, wanted if stay else ())


def streams_window(decoder: Decoder, device: torch.device, layers: range, stream: str) -> bool:
    """Whether what a window holds of each layer is made when the layer runs, and not kept.

    Args:
        decoder, device, stream: as in :func:`place_layers`.
        layers: of the window.
    """
    weights = decoder.entries * len(layers) // len(decoder.layers)
    return window_streams(weights, len(layers), stream, free_memory(device))
