"""How long a protection will take here: a few slices of the scan, timed; of a mark, some of its cubes."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from ..runtime.threads import usable_threads
from ..scan.volume import CTVolume
from .diagnosis_blocking import DiagnosisBlocker, seconds_to_block
from .protector import Protector, load_protector, protect

if TYPE_CHECKING:
    import torch

_MOST_SLICES = 4


def seconds_to_protect(volume: CTVolume, model: str | Protector, device: torch.device) -> float:
    """An estimate for the whole scan, from slices of its middle: as many as run side by side, but few.

    :raises ModelError: when the model cannot be loaded.
    :raises TargetError: when the model is a mark, and no lung is found.
    """
    ready = model if isinstance(model, Protector) else load_protector(model)
    if isinstance(ready.generator, DiagnosisBlocker):
        return seconds_to_block(volume, ready.generator, device.type)
    count = min(_MOST_SLICES, usable_threads(), volume.shape[0])
    first = (volume.shape[0] - count) // 2
    few = dataclasses.replace(volume, hu=volume.hu[first : first + count])
    # The first run also pays for starting the device.
    protect(dataclasses.replace(few, hu=few.hu[:1, :64, :64]), model=ready, device=device.type)
    started = time.perf_counter()
    protect(few, model=ready, device=device.type)
    return (time.perf_counter() - started) * volume.shape[0] / count
