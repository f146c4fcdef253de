"""Which layers stay on the device, and which are copied there each time that they run."""

from __future__ import annotations

import torch

from permllm.models.decoder import Decoder
from permllm.models.devices import free_memory
from permllm.runner.preflight.footprint import SHARE, window_streams
from permllm.world import ALONE, World


def place_layers(
    decoder: Decoder, device: torch.device, layers: range | None, stream: str, world: World = ALONE
) -> bool:
    """Have a model compute on a device, some layers of which are wanted again and again.

    Args:
        decoder: the model.
        device: where it computes.
        layers: those that are wanted; all where it is None.
        stream: ``always`` copies a layer each time that it runs, ``never`` once, ``auto`` once
            if the copies of all take no more than half of the memory that is free.
        world: the processes that do the same; what the first finds to fit holds for all.

    Returns:
        whether they stay there.
    """
    wanted = range(len(decoder.layers)) if layers is None else layers
    stay = stream == "never"
    if stream == "auto":
        copied = decoder.residency.copied_bytes(wanted, device)
        # What lies there already is room that they may take again.
        room = _room(device, world) + decoder.residency.staying_bytes(device)
        stay = world.agreed(lambda: copied <= SHARE * room)
    decoder.place(device, wanted if stay else ())
    return stay


def streams_window(
    decoder: Decoder, device: torch.device, layers: range, stream: str, world: World = ALONE
) -> bool:
    """Whether what a window holds of each layer is made when the layer runs, and not kept.

    Args:
        decoder, device, stream, world: as in :func:`place_layers`.
        layers: of the window.
    """
    weights = decoder.entries * len(layers) // len(decoder.layers)
    return world.agreed(lambda: window_streams(weights, len(layers), stream, _room(device, world)))


def _room(device: torch.device, world: World) -> int:
    """The free memory of a device that is this process's."""
    return free_memory(device) // (world.neighbours if device.type == "cpu" else 1)
