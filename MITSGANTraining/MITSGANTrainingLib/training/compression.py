"""Compression like JPEG's with gradients, for training against attackers of compressed scans.

Baseline JPEG (ITU-T T.81) of one gray channel without its lossless last stage: HU in a window to integer samples,
discrete cosine transform of 8x8 blocks, quantization by Annex K's luminance table scaled by a quality, and back. With
12 bits, as DICOM's lossy JPEG of CT has them, one sample is 1 HU; with 8 bits and a display window it is an exported
picture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from MITSGANLib.errors import InputError
from scipy import fft
from torch.nn import functional as F

from .slabs import rounded

BLOCK = 8
# Annex K, table K.1, rows by vertical frequency.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@dataclass(frozen=True)
class Compression:
    """How slices are compressed.

    :param quality: lowest and highest quality to draw from, 1..100, in the scale of the Independent JPEG Group.
    :param share: share of the draws that compress at all.
    :param window_hu: HU of the smallest and the largest sample; values beyond are clipped.
    :param bits: of a sample; 12 or 8.
    :raises InputError: when a value is out of range.
    """

    quality: tuple[int, int] = (50, 95)
    share: float = 1.0
    window_hu: tuple[float, float] = (-1024.0, 3071.0)
    bits: int = 12

    def __post_init__(self) -> None:
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise InputError(f"The qualities must rise from 1 to at most 100, not from {low} to {high}.")
        if not 0 <= self.share <= 1:
            raise InputError(f"The share of compressed slices must be from 0 to 1, not {self.share}.")
        if not self.window_hu[0] < self.window_hu[1]:
            raise InputError(f"The window of the compression must rise, not go from {self.window_hu}.")
        if self.bits not in (8, 12):
            raise InputError(f"The compression has 8 or 12 bits, not {self.bits}.")


def draw_quality(config: Compression, rng: np.random.Generator) -> int | None:
    """A quality, uniform over the configured range, or None for no compression."""
    low, high = config.quality
    compressed, quality = rng.random() < config.share, int(rng.integers(low, high + 1))
    return quality if compressed else None


def compress(hu: torch.Tensor, quality: int | None, config: Compression) -> torch.Tensor:
    """Slices (..., rows, columns) in HU as they come back from compression, float32; unchanged where it is None.

    Values beyond the window come back at its ends. Rows and columns need not be multiples of 8.

    :raises InputError: when the quality is not from 1 to 100.
    """
    if quality is None:
        return hu
    low, high = config.window_hu
    largest = 2**config.bits - 1
    samples = rounded((hu.float().clamp(low, high) - low) * (largest / (high - low)))
    rows, columns = hu.shape[-2:]
    flat = (samples - (largest + 1) // 2).reshape(-1, 1, rows, columns)
    padded = F.pad(flat, (0, -columns % BLOCK, 0, -rows % BLOCK), mode="replicate")
    # (n, down, across, 8, 8).
    blocks = F.pixel_unshuffle(padded, BLOCK).unflatten(1, (BLOCK, BLOCK)).permute(0, 3, 4, 1, 2)
    transform = _cosines().to(hu.device)
    table = quantization_table(quality).to(hu.device)
    # Half precision, which mixed training takes for products, knows 12-bit samples to 2 HU only.
    with torch.autocast(hu.device.type, enabled=False):
        coefficients = rounded(transform @ blocks @ transform.T / table) * table
        blocks = transform.T @ coefficients @ transform
    whole = F.pixel_shuffle(blocks.permute(0, 3, 4, 1, 2).flatten(1, 2), BLOCK)[..., :rows, :columns]
    restored = rounded((whole.reshape(hu.shape) + (largest + 1) // 2).clamp(0, largest))
    return restored * ((high - low) / largest) + low


def quantization_table(quality: int) -> torch.Tensor:
    """Steps of the 8x8 coefficients in samples, float32: Annex K's, scaled as the Independent JPEG Group does."""
    if not 1 <= quality <= 100:
        raise InputError(f"The quality must be from 1 to 100, not {quality}.")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (np.array(_LUMINANCE) * percent + 50) // 100
    return torch.from_numpy(np.clip(table, 1, 255).astype(np.float32))


@functools.lru_cache(maxsize=1)
def _cosines() -> torch.Tensor:
    """The orthonormal discrete cosine transform of 8 samples, (frequency, sample)."""
    return torch.from_numpy(fft.dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32))
