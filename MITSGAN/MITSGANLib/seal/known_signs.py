"""The signs of a watermark, where the sealer knows them: with them, what the watermark changed is short to tell.

What they derive from lies in the seal, encrypted: whoever can restore the original can also tell the signs of this one
scan. The positions of the slices lie there too, so that they are the very same numbers when the seal is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..scan.volume import PROTECTION, CTVolume
from ..watermark.embedding import recorded_watermark
from ..watermark.pattern import OPEN_KEY, ScanSigns, WatermarkKey
from .change import Slices


def signs_in(volume: CTVolume, key: WatermarkKey | None = None) -> ScanSigns | None:
    """Signs of a protected volume; None where it has no watermark, or its key is not known.

    :param key: of a watermark that is not the open one.
    """
    step = volume.provenance.last(PROTECTION)
    kind = step.parameters.get("watermark") if step else None
    used = {"open": OPEN_KEY, "keyed": key}.get(str(kind))
    if used is None:
        return None
    recorded = recorded_watermark(volume, used)
    return ScanSigns.of(volume, recorded.key if recorded else used)


def signs_of_slices(watermark: ScanSigns | None, hu: Sequence[np.ndarray]) -> Sequence[np.ndarray] | None:
    """The signs of each protected slice, int8 (rows, columns); None without a watermark.

    :param hu: int16 HU of each slice, as it is protected.
    """
    if watermark is None or len(watermark.depths) != len(hu):
        return None
    return Slices(len(hu), lambda k: watermark.of_slice(k, hu[k]))


def from_record(record: Mapping[str, Any] | None) -> ScanSigns | None:
    """Signs of a record in the encrypted payload, which ``ScanSigns.to_dict`` made; None where it holds none."""
    return None if record is None else ScanSigns.from_dict(record)
