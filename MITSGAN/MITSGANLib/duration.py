"""How long a protection will take here: one slice of the scan, timed; of a mark, some of its cubes."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from .marking import DecisionMark, seconds_to_mark
from .protector import Protector, load_protector, protect
from .volume import CTVolume

if TYPE_CHECKING:
    import torch


def seconds_to_protect(volume: CTVolume, model: str | Protector, device: torch.device) -> float:
    """An estimate for the whole scan, from its middle slice.

    :raises ModelError: when the model cannot be loaded.
    :raises TargetError: when the model is a mark, and no lung is found.
    """
    ready = model if isinstance(model, Protector) else load_protector(model)
    if isinstance(ready.generator, DecisionMark):
        return seconds_to_mark(volume, ready.generator, device.type)
    middle = volume.shape[0] // 2
    one_slice = dataclasses.replace(volume, hu=volume.hu[middle : middle + 1])
    # The first run also pays for starting the device.
    protect(dataclasses.replace(one_slice, hu=one_slice.hu[:, :64, :64]), model=ready, device=device.type)
    started = time.perf_counter()
    protect(one_slice, model=ready, device=device.type)
    return (time.perf_counter() - started) * volume.shape[0]
